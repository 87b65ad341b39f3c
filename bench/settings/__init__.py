"""What a run is asked to do: its settings, its methods and their options."""
