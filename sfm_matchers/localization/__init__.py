"""Poses of new photos in a map."""
