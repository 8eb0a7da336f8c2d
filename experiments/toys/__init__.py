"""What the drivers of small learned problems share."""
