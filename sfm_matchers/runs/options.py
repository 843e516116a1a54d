"""What a run is to do, as its caller says."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sfm_matchers.choices import EXIF, SCAN_MAX_ERROR
from sfm_matchers.confs import Detail, check_keys
from sfm_matchers.errors import EMPTY_PATH, InputError

# `--matcher auto`: where SIFT finds enough nothing is as exact for as little time; the photos that
# it leaves out of the model are matched again by the second.
AUTO = "auto"
AUTO_MATCHERS = ("sift", "aliked+mambaglue")

# `--camera_model auto`: what is mapped with, before models are chosen by evidence.
MAPPED_WITH = "SIMPLE_RADIAL"


@dataclass(frozen=True)
class MatchOptions:
    """What to match, and how; the command line `pipelines.sfm` has the same names.

    Attributes:
        image_dir: folder of photos, or a video.
        outputs: folder for all results.
        matcher: name of a conf, or a conf file.
        quality: ``low``, ``medium``, ``high``, ``extreme``; None: as the conf says.
        max_image_size: longer side in pixels to which photos are reduced for matching.
        max_num_features: most keypoints of a photo.
        pairs: ``auto``, ``exhaustive``, ``sequential``, ``retrieval``, ``spatial``, or a file.
        num_matched: photos matched to each by all but ``exhaustive``.
        georeference: positions of photos: ``exif``, ``none``, or a file.
        mask_dir: a folder of masks, or one mask for all photos.
        weights: ``bundled``, ``official``, ``lightglue``, or a checkpoint file.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        workers: processes that match; None: this one.
        ray: address of a Ray cluster.
        drop_raw_matches: delete a detector-free matcher's correspondences in the end.
        frames: of a video, at most; None: one for each tenth of the picture that it moves.
    """

    image_dir: str | Path
    outputs: str | Path
    matcher: str | Path = "sift"
    quality: str | None = None
    max_image_size: int | None = None
    max_num_features: int | None = None
    pairs: str | Path = "auto"
    num_matched: int = 20
    georeference: str | Path = EXIF
    mask_dir: str | Path | None = None
    weights: str | Path = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None
    drop_raw_matches: bool = False
    frames: int | None = None

    @property
    def detail(self) -> Detail:
        """How much of the photos is looked at, where this is not as the conf says."""
        return Detail(self.quality, self.max_image_size, self.max_num_features)


@dataclass(frozen=True)
class SfmOptions(MatchOptions):
    """What to reconstruct, and how. The command line has the same names and defaults.

    Attributes, beside those of `MatchOptions`:
        mapper: ``incremental``, ``global`` or ``hierarchical``.
        mapper_threads: of the mapper; one gives the same model every time.
        camera_mode: which photos share a camera: ``auto``, ``single``, ``per_folder``,
            ``per_image``.
        camera_model: COLMAP's name, or ``auto``.
        camera_params: known intrinsics in COLMAP's order, comma-separated, in pixels.
        cameras: file of known intrinsics by folder or name.
        shard: ``I/N``: match one part only.
        merge: go on after all shards are done.
        export: formats for other tools, comma-separated.
        keep_all_pairs: map pairs of places that look alike too.
        no_longer_tracks: keep the tracks that matching gave.
        no_refine: leave the mapper's model as it is.
        overwrite: delete the results in `outputs` first.
    """

    matcher: str | Path = AUTO
    mapper: str = "incremental"
    mapper_threads: int = 1
    camera_mode: str = "auto"
    camera_model: str = AUTO
    camera_params: str = ""
    cameras: str | Path | None = None
    shard: str | None = None
    merge: bool = False
    export: str = ""
    keep_all_pairs: bool = False
    no_longer_tracks: bool = False
    no_refine: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Names are taken in any case, as those of matchers and camera models are."""
        for option in ("matcher", "camera_model"):
            if str(getattr(self, option)).lower() == AUTO:
                object.__setattr__(self, option, AUTO)


@dataclass(frozen=True)
class LocalizeOptions:
    """What to localize, and how. The command line has the same names and defaults.

    Attributes:
        map: folder of a COLMAP model, or above its ``sparse/0``.
        map_images: folder its names are relative to.
        queries: folder of new photos, one photo, or a video.
        outputs: folder for all results.
        matcher: name of a conf, or a conf file.
        num_covis: photos of the map that each photo of it is matched with.
        num_loc: photos of the map that each query is matched with.
        loc_pairs: file of pairs (query, photo of the map) instead of retrieval.
        camera_from_map: queries are expected to be by a camera of the map.
        camera_model: of `camera_params`.
        camera_params: known intrinsics of all queries, comma-separated, in pixels.
        cameras: file of intrinsics of single queries.
        estimate_focal_length: with the pose, of every query.
        ransac_thresh: largest reprojection error of an inlier in pixels.
        retrieval: ``vlad``, or one of hloc's.
        weights, device, workers, ray: as in `MatchOptions`.
    """

    map: str | Path
    map_images: str | Path | None
    queries: str | Path
    outputs: str | Path
    matcher: str = "sift"
    num_covis: int = 20
    num_loc: int = 20
    sequence: bool = False
    loc_pairs: str | Path | None = None
    camera_from_map: bool = False
    camera_model: str = "SIMPLE_RADIAL"
    camera_params: str = ""
    cameras: str | Path | None = None
    estimate_focal_length: bool = False
    ransac_thresh: float = 12.0
    retrieval: str = "vlad"
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True)
class MapOptions:
    """What to make a map of, and how. The command line has the same names and defaults.

    Attributes:
        model: a COLMAP model, or the outputs of a run of sfm, whose features are taken.
        images: folder that the names of its photos are relative to.
        output: folder of the map.
        matcher: a conf with features; one without a detector would need the photos in the map.
        num_covis: photos of the map that each is matched with.
        mask_dir: the masks that the run of sfm had.
    """

    model: str | Path
    images: str | Path
    output: str | Path
    matcher: str = "aliked+mambaglue"
    num_covis: int = 20
    mask_dir: str | Path | None = None
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True)
class BenchmarkOptions:
    """What Aachen and InLoc have in common.

    Attributes:
        dataset: its folder.
        outputs and the others: as in `LocalizeOptions`.
    """

    dataset: Path
    outputs: Path
    matcher: str = "sift"
    num_loc: int = 50
    ransac_thresh: float = 12.0
    retrieval: str = "vlad"
    weights: str = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None


@dataclass(frozen=True)
class AachenOptions(BenchmarkOptions):
    """What to localize of Aachen Day-Night. The command line has the same names and defaults.

    Attributes, beside those of `BenchmarkOptions`:
        version: ``1.1`` or ``1.0``.
        num_covis, loc_pairs: as in `LocalizeOptions`.
    """

    version: str = "1.1"
    num_covis: int = 20
    loc_pairs: Path | None = None


@dataclass(frozen=True)
class InlocOptions(BenchmarkOptions):
    """What to localize of InLoc. The command line has the same names and defaults.

    Attributes, beside those of `BenchmarkOptions`:
        pairs: file of pairs (query, cutout) instead of retrieval.
        skip_matches: leave out cutouts with fewer matches than this.
    """

    num_loc: int = 40
    ransac_thresh: float = SCAN_MAX_ERROR
    pairs: Path | None = None
    skip_matches: int = 20


# The least that options may be; what is seen of photos is looked at in `confs.detail`.
_LEAST = {
    "num_matched": 1,
    "num_covis": 1,
    "num_loc": 1,
    "skip_matches": 0,
    "frames": 2,
    "mapper_threads": -1,
    # Of training.
    "steps": 1,
    "batch_size": 1,
    "validate_every": 1,
}


def check_numbers(options: object) -> None:
    """Look at the numbers among the options of a run, before anything takes time.

    Raises:
        InputError: one makes no sense.
    """
    for name, least in _LEAST.items():
        number = getattr(options, name, None)
        if number is not None:
            check_least(name, number, least)
    error = getattr(options, "ransac_thresh", 1.0)
    if not 0 < error < math.inf:
        raise InputError(f"--ransac_thresh {error}: expected pixels, more than 0")


def check_least(name: str, number: int, least: int) -> None:
    """Raise InputError if the number of an option is less than it may be."""
    if number < least:
        raise InputError(f"--{name} {number}: expected {least} or more")


Options = TypeVar("Options", MatchOptions, SfmOptions, LocalizeOptions)


def make_options(kind: type[Options], **given: Any) -> Options:
    """Return options; an unknown name is an error with the one that was probably meant.

    Raises:
        InputError: there is no such option, or a path is empty.
    """
    check_keys(given, [field.name for field in fields(kind)], f"options of {kind.__name__}")
    for field in fields(kind):
        if "Path" in str(field.type) and given.get(field.name) == "":
            raise InputError(f"{field.name}: {EMPTY_PATH}")
    return kind(**given)
