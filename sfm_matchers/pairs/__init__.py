"""Which photos to match with each other."""
