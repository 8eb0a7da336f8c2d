"""A run: its config, its folder, its log, its steps."""
