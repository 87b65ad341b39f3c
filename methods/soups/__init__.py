"""Mix the weights of several models, and choose how."""
