"""What is made of a COLMAP model: its camera models, how sure it is, its place on the earth."""
