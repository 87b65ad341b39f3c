"""Recipes: methods that make a classifier before the stream starts."""
