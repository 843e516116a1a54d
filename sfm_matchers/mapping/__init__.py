"""Matches to a COLMAP model, by pycolmap."""
