"""What the drivers of the paper's three experiments share."""
