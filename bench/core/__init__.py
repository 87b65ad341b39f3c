"""Errors, conditions, devices, the cache folder, and the identity of code and machine. Imports no other subpackage."""
