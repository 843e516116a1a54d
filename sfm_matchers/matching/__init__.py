"""The matching engine: all pairs of a list through a matcher, into a file, resumable."""

from .engine import match_features, match_images

__all__ = ["match_features", "match_images"]
