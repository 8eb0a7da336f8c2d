"""Folders of images, and what is detected in them."""
