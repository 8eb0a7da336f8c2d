"""Objects and their poses, in BOP's layout."""
