"""Fetch, locate, verify, explain and export the data of a shift."""
