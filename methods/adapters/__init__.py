"""Adapters: methods that change a classifier along the stream. One method, one file."""
