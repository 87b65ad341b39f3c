"""Errors, conditions, devices, the cache folder, and what identifies code and machine. Imports no other room."""
