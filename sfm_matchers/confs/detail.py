"""Confs that see more or less of a photo."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfm_matchers.choices import QUALITIES
from sfm_matchers.confs.reading import MAX_SIDE
from sfm_matchers.confs.types import Conf, DetectorFreeConf
from sfm_matchers.errors import InputError


@dataclass(frozen=True)
class Detail:
    """How much of a photo a matcher sees, where this is not as its conf says.

    Attributes:
        quality: one of `QUALITIES`: COLMAP's sizes and numbers of features with COLMAP's matcher of
            SIFT, and their proportions with others, whose conf is of medium quality.
        max_image_size: longer side in pixels; counts more than `quality`.
        max_num_features: most keypoints of a photo; counts more than `quality`.
    """

    quality: str | None = None
    max_image_size: int | None = None
    max_num_features: int | None = None


# As of COLMAP's automatic reconstructor: longer side in pixels, features.
_COLMAP_QUALITY = {
    "low": (1000, 2048),
    "medium": (1600, 4096),
    "high": (2400, 8192),
    "extreme": (3200, 8192),
}
_LIMITS = ("max_num_features", "max_num_keypoints")  # what front-ends call theirs


def with_detail(conf: Conf, detail: Detail) -> Conf:
    """Return a conf with another size of photos and another number of keypoints.

    Raises:
        InputError: there is no such quality, size or number.
    """
    if detail.quality is not None and detail.quality not in QUALITIES:
        raise InputError(f"unknown quality {detail.quality!r}, expected {', '.join(QUALITIES)}")
    for name in ("max_image_size", "max_num_features"):
        number = getattr(detail, name)
        if number is not None and not 0 < number <= MAX_SIDE:
            raise InputError(f"--{name} {number}: expected 1 to {MAX_SIDE}")
    if detail == Detail():
        return conf

    def size(own: int | None) -> int | None:
        return detail.max_image_size or _scaled(conf, own, detail.quality, 0)

    def count(own: int | None) -> int | None:
        return detail.max_num_features or _scaled(conf, own, detail.quality, 1)

    if isinstance(conf, DetectorFreeConf):
        side = size(conf.preprocessing.resize_max) or conf.preprocessing.resize_max
        return replace(
            conf,
            preprocessing=replace(conf.preprocessing, resize_max=side),
            max_keypoints=count(conf.max_keypoints),
        )
    front_end = conf.features
    limits = {key: count(front_end.options[key]) for key in _LIMITS if key in front_end.options}
    seen = replace(front_end.preprocessing, resize_max=size(front_end.preprocessing.resize_max))
    options = {**front_end.options, **limits}
    return replace(conf, features=replace(front_end, options=options, preprocessing=seen))


def _scaled(conf: Conf, own: int | None, quality: str | None, column: int) -> int | None:
    """A number of a conf at a quality; ``None``, no limit, stays."""
    if own is None or quality is None:
        return own
    is_colmaps = "nearest_neighbor" in conf.matcher
    reference = _COLMAP_QUALITY["extreme" if is_colmaps else "medium"]
    return round(own * _COLMAP_QUALITY[quality][column] / reference[column])
