"""Data that are made: scenes, boards, pictures, each from a seed."""
