"""Measures against truth."""
