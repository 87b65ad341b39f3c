"""Stream images past a method and keep what it predicts."""
