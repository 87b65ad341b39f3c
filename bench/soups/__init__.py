"""Soups of weights in files: mix them, and learn the coefficients."""
