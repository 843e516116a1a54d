"""JamMa as a matcher of hloc; hloc imports this module as ``hloc.matchers.jamma``."""

from __future__ import annotations

from sfm_matchers.hloc.detector_free import DetectorFreeModel


class JamMa(DetectorFreeModel):
    """Images are RGB; options are those of `JamMaConfig`."""
