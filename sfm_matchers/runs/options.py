"""What a run is to do, as its caller says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfm_matchers.choices import EXIF

# `--matcher auto`: where SIFT finds enough nothing is as exact for as little time; the photos that
# it leaves out of the model are matched again by the second.
AUTO = "auto"
AUTO_MATCHERS = ("sift", "aliked+mambaglue")

# `--camera_model auto`: what is mapped with, before models are chosen by evidence.
MAPPED_WITH = "SIMPLE_RADIAL"


@dataclass(frozen=True)
class SfmOptions:
    """What to reconstruct, and how. The command line has the same names and defaults."""

    image_dir: str | Path
    outputs: str | Path
    matcher: str | Path = AUTO
    pairs: str | Path = "auto"
    num_matched: int = 20
    mapper: str = "incremental"
    mapper_threads: int = 1
    camera_mode: str = "auto"
    camera_model: str = AUTO
    camera_params: str = ""
    cameras: str | Path | None = None
    mask_dir: str | Path | None = None
    georeference: str | Path = EXIF
    weights: str | Path = "bundled"
    device: str = "auto"
    workers: int | None = None
    ray: str | None = None
    shard: str | None = None
    merge: bool = False
    export: str = ""
    drop_raw_matches: bool = False
    no_longer_tracks: bool = False
    no_refine: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class LocalizeOptions:
    """What to localize, and how. The command line has the same names and defaults."""

    map: str | Path
    map_images: str | Path
    queries: str | Path
    outputs: str | Path
    matcher: str = "sift"
    num_covis: int = 20
    num_loc: int = 20
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
