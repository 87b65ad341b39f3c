"""Fetch, find, check, explain and export the data of a shift."""
