"""Mix weight files into soups, and learn the mixing coefficients."""
