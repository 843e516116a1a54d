"""What is made of a COLMAP model: its place on the earth."""
