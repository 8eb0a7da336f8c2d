"""Many views at once: cameras, points and intrinsics at the minimum of their reprojection errors."""
