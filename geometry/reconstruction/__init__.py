"""Intrinsics and structure learned through PnP, whose poses sit at their argmin."""
