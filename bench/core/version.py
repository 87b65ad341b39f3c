"""The version of this project; it stands nowhere else."""

__version__ = "0.1.0.dev0"
