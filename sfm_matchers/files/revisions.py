"""Revisions of the steps' algorithms.

A revision is part of the fingerprint of everything that its step makes. Whoever changes what a
step makes of the same input raises its number: results of earlier versions are then made again.
"""

from __future__ import annotations

FRAMES = 1  # which frames of a video are photos
PHOTOS = 2  # how photos and masks are decoded, and thus everything
MASKS = 1  # what masks ignore, and thus everything of photos that have one
FEATURES = 3
MATCHES = 5  # of features and of images
TURNS = 1  # how photos lie whose images are matched, from some of their pairs
KEYPOINTS = 1  # made of detector-free matches
GLOBAL_DESCRIPTORS = 1
DATABASE = 3  # import and verification
LOOK_ALIKES = 2  # pairs of two places
MODEL = 8  # mapping, the last adjustment
MERGING = 3  # several models to one
LONGER_TRACKS = 4  # points found in more photos
CAMERAS = 9  # which photos share one, as the model tells
CAMERA_MODELS = 8  # chosen after mapping, and the adjustment with them
DENIED_POSES = 1  # photos of a map whose poses its matches deny
TRIANGULATION = 1
JOINED = 2  # matches of two matchers
GEOREFERENCE = 2  # models that stand on their heads are told
EXPORTS = 3  # models for other tools
