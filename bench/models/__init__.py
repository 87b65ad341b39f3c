"""Classifiers and stocks: weights in files, in packages and on the hub."""
