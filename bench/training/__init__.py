"""Run the training jobs of recipes through the cache, and pre-train stocks."""
