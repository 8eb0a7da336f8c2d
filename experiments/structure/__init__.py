"""What the drivers of structure share."""
