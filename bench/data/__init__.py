"""Labelled images on disk or from the hub: reading, decoding once, and caching of pixels and file hashes."""
