"""Parse the settings of a run, its methods and their options."""
