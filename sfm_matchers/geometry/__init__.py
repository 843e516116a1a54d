"""Geometry of two views."""
