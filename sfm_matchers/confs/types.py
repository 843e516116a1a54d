"""What a conf says, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

RESIZE_MAX = 832
"""Pixels, the longer side of the images on which JamMa and Efficient LoFTR are trained."""


@dataclass(frozen=True)
class Preprocessing:
    """How a front-end gets its photos.

    Attributes:
        resize_max: pixels; photos with a longer side are reduced to it. None: as they are.
    """

    resize_max: int | None = None


@dataclass(frozen=True)
class DetectorFreePreprocessing:
    """How a detector-free matcher gets its photos, and looks at them again.

    Attributes:
        resize_max: pixels, the longer side that the network sees.
        quarter_turns: photos are set upright as EXIF tells, then photo 1 of each pair is tried in
            four positions at a small size, and matched in the one that agrees best with photo 0; of
            many pairs, some that tell how the photos of the others lie.
        match_overlap: what the two photos share is matched again, cut out of them; photos without
            detail are seen small, those taken from far and near at one scale.
        least_squares_matching: points of photo 1 are moved until the photos agree around them.
    """

    resize_max: int = RESIZE_MAX
    quarter_turns: bool = False
    match_overlap: bool = False
    least_squares_matching: bool = False

    def settings(self) -> dict[str, Any]:
        """Return the size and the switches that are on, as a conf file has them."""
        on = {key: value for key, value in asdict(self).items() if value is True}
        return {"resize_max": self.resize_max, **on}


@dataclass(frozen=True)
class FrontEnd:
    """What makes keypoints and descriptors.

    Attributes:
        name: a key of `features.extraction.EXTRACTORS`.
        options: its own.
        output: stem of the feature file.
        preprocessing: of photos.
        file: that says so, for messages; "" for none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""
    preprocessing: Preprocessing = Preprocessing()
    file: str = field(default="", compare=False, repr=False)

    @property
    def where(self) -> str:
        """What messages about its options begin with."""
        return f"{self.file}, features, model" if self.file else f"front-end {self.name}"

    @property
    def model(self) -> dict[str, Any]:
        """Name and options in one, as hloc writes them."""
        return {"name": self.name, **self.options}

    def settings(self) -> dict[str, Any]:
        """Return hloc's conf of `extract_features`."""
        resize_max = self.preprocessing.resize_max
        preprocessing = {} if resize_max is None else {"resize_max": resize_max}
        return {"output": self.output, "model": self.model, "preprocessing": preprocessing}


@dataclass(frozen=True)
class _Matching:
    """What confs of both kinds say.

    Attributes:
        name: of the conf.
        output: stem of the match file.
        model: the matcher's ``name`` and options, as hloc writes them.
        file: that says so, for messages; "" for none.
    """

    name: str
    output: str
    model: Mapping[str, Any]
    file: str = field(default="", kw_only=True, compare=False, repr=False)

    @property
    def where(self) -> str:
        """What messages about it begin with."""
        return self.file or f"conf {self.name}"

    def content(self) -> dict[str, Any]:
        """Return all that it says, without the file that says so."""
        return {key: value for key, value in asdict(self).items() if key != "file"}

    @property
    def matcher(self) -> str:
        """The matcher's name."""
        return str(self.model.get("name"))

    @property
    def options(self) -> dict[str, Any]:
        """The matcher's options."""
        return {key: value for key, value in self.model.items() if key != "name"}


@dataclass(frozen=True)
class SparseConf(_Matching):
    """Keypoints and descriptors first, then matches between descriptors.

    Attributes:
        features: what makes the keypoints and descriptors.
        min_inlier_ratio: share of a pair's matches that one two-view geometry must explain.
    """

    features: FrontEnd
    min_inlier_ratio: float = 0.0

    def content(self) -> dict[str, Any]:
        """Return all that it says, its features as hloc's conf of `extract_features`."""
        return {**super().content(), "features": self.features.settings()}


@dataclass(frozen=True)
class DetectorFreeConf(_Matching):
    """Matches between two images directly; keypoints come from the matches of many pairs.

    Attributes:
        max_error: radius in pixels of the photo within which matches snap to one keypoint.
        cell_size: side in pixels of the cells in which keypoints are elected.
        preprocessing: of photos.
        max_keypoints: keypoints kept per photo, best first; None: all.
        refine_keypoints: whether keypoints are moved to where their matches agree; hloc leaves them
            at the nodes of a grid, and those of new photos in a map at the matched points.
        min_inlier_ratio: as in `SparseConf`. Photos that share nothing get hundreds of matches too,
            and COLMAP asks for 15 inliers only.
    """

    max_error: float
    cell_size: float
    preprocessing: DetectorFreePreprocessing = DetectorFreePreprocessing()
    max_keypoints: int | None = 8192
    refine_keypoints: bool = False
    min_inlier_ratio: float = 0.25


Conf = SparseConf | DetectorFreeConf
