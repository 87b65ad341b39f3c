"""Random views of images, made for a whole batch at once on its device."""
