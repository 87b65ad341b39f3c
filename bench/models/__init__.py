"""Load classifiers and stocks from files, packages and the hub."""
