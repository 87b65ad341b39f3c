"""First files for methods, shifts and corruptions of your own, and their checks."""
