"""Stream images through a method and keep its predictions."""
