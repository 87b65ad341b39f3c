"""The tasks of a run and their cost, planned before it starts."""
