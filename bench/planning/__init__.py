"""Everything a run will do and cost, worked out before it starts."""
