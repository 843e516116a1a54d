"""What the steps that extract and match do with confs of ours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sfm_matchers.confs import DetectorFreeConf, FrontEnd, SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.features.extraction import extract_features
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.locks import exclusive, one_at_a_time
from sfm_matchers.files.pair_lists import Pair, read_pairs, unique_pairs
from sfm_matchers.files.seals import tell_changed
from sfm_matchers.files.staged import remove_staged
from sfm_matchers.hloc import default_weights
from sfm_matchers.hloc.steps.executors import ExecutorOptions
from sfm_matchers.keypoints.aggregation import aggregate
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.localization.query_files import read_image_names
from sfm_matchers.matchers.registry import (
    default_device,
    load_detector_free_matcher,
    load_sparse_matcher,
    matcher_weights_fingerprint,
)
from sfm_matchers.matching import Executor, match_features, match_images
from sfm_matchers.matching.executors import make_executor
from sfm_matchers.photos.checked import CheckedPhoto, check_photos
from sfm_matchers.photos.folders import find_images


def extract(
    front_end: FrontEnd, image_dir: Path, image_list: str | Path | None, feature_path: Path
) -> None:
    """Extract features of the images that are listed, or all, to a feature file."""
    names = read_image_names(image_list) if image_list else None
    with exclusive(feature_path.parent):
        photos = check_photos(image_dir, feature_path.parent, names)
        wanted = {name: photo.fingerprint for name, photo in photos.items()}
        extract_features(front_end, image_dir, wanted, feature_path, device=default_device())


def match_sparse(
    conf: SparseConf,
    pair_list: Path,
    feature_path: Path,
    match_path: Path,
    weights: str | None,
    sharing: ExecutorOptions,
    *,
    overwrite: bool,
) -> bool:
    """Match features; return True if the match file is whole, False if other shards are left."""
    weights, device = weights or default_weights(conf.model), default_device()
    executor = _executor(sharing, device, overwrite=overwrite)
    tell_changed(feature_path)
    pairs = unique_pairs(read_pairs(pair_list, list_groups(feature_path)))
    with exclusive(match_path.parent, sharing.shard):
        if overwrite:
            remove_staged(match_path)
        match_features(
            conf,
            partial(load_sparse_matcher, conf, weights, device),
            pairs,
            feature_path,
            match_path,
            matcher_weights_fingerprint(conf, weights),
            executor,
        )
    return not executor.shares_with_others


def match_dense(
    conf: DetectorFreeConf,
    pair_list: Path,
    image_dir: Path,
    feature_path: Path,
    match_path: Path,
    weights: str | None,
    sharing: ExecutorOptions,
    *,
    max_kps: int | None,
    features_ref: Sequence[str | Path],
    overwrite: bool,
) -> bool:
    """Match images, and join their matches to keypoints unless other shards are left.

    Returns:
        True if both files are whole.
    """
    weights, device = weights or default_weights(conf.model), default_device()
    executor = _executor(sharing, device, overwrite=overwrite)
    raw_path = match_path.with_name(f"{match_path.stem}_raw.h5")
    with exclusive(match_path.parent, sharing.shard):
        pairs, photos = _pairs_of_photos(pair_list, image_dir, match_path.parent)
        if overwrite:
            remove_staged(raw_path)
        match_images(
            conf,
            partial(load_detector_free_matcher, conf, weights, device),
            pairs,
            image_dir,
            {name: photo.fingerprint for name, photo in photos.items()},
            raw_path,
            weights_fingerprint=matcher_weights_fingerprint(conf, weights),
            executor=executor,
        )
        if executor.shares_with_others:
            return False
        aggregate(
            pairs,
            raw_path,
            feature_path,
            match_path,
            AggregationOptions(conf.max_error, conf.cell_size, max_kps),
            {name: photo.size for name, photo in photos.items()},
            fixed_features=[Path(path) for path in features_ref],
            existing="overwrite" if overwrite else "keep",
        )
    return True


def _pairs_of_photos(
    pair_list: Path, image_dir: Path, outputs: Path
) -> tuple[list[Pair], dict[str, CheckedPhoto]]:
    """The pairs both of whose photos can be decoded, and all such photos."""
    pairs = unique_pairs(read_pairs(pair_list, find_images(image_dir)))
    names = sorted({name for pair in pairs for name in pair})
    with one_at_a_time(outputs):
        photos = check_photos(image_dir, outputs, names)
    pairs = [pair for pair in pairs if all(name in photos for name in pair)]
    if not pairs:
        raise InputError(f"{pair_list} holds no pair of photos of {image_dir}")
    return pairs, photos


def _executor(sharing: ExecutorOptions, device: str, *, overwrite: bool) -> Executor:
    if sharing.shard and overwrite:
        raise InputError("--overwrite would delete what other shards have done")
    return make_executor(sharing.workers, sharing.ray, device, sharing.shard, merge=sharing.merge)
