"""Efficient LoFTR as a matcher of hloc; hloc imports this module as ``hloc.matchers.eloftr``."""

from __future__ import annotations

from sfm_matchers.hloc.detector_free import DetectorFreeModel


class EfficientLoFTR(DetectorFreeModel):
    """Images are gray; options are those of `EfficientLoFTRConfig`."""
