"""What can be wrong with a folder of images and masks, and how it is told."""
