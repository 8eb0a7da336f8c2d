"""Keypoints of tracks, refined: patches, their alignment, the network, and how pose errors are judged."""
