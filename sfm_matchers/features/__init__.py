"""Local features of photos."""
