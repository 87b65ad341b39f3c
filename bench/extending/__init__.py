"""Write starter files for user-defined methods, shifts and corruptions, and check them."""
