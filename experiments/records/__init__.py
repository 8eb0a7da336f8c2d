"""What a run has recorded, and files that are written whole."""
