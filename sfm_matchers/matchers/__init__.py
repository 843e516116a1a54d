"""Two photos, or their features, to matches."""
