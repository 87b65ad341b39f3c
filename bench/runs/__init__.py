"""Run a plan, write its records, and read, repeat and publish them."""
