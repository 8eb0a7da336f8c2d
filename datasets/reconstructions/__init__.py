"""Files of cameras and points: BAL, COLMAP, Bundler, libmv."""
