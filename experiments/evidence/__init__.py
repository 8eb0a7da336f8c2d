"""What the README and the pages state of the experiments: the list of it, its intervals, its tables."""
