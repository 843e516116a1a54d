"""hloc's steps that make models and poses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pycolmap

from sfm_matchers.confs import check_keys
from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import Pair, read_pairs
from sfm_matchers.files.replacing import remove_left_behind
from sfm_matchers.files.seals import tell_changed
from sfm_matchers.hloc.steps.inputs import read_mapper_options
from sfm_matchers.localization.in_depth_scans import (
    ScanOptions,
    localize_in_scans,
    query_camera,
)
from sfm_matchers.localization.in_model import localize_queries
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    failed_query,
    log_outcome,
    write_results,
)
from sfm_matchers.localization.query_files import read_queries
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.database import build_database
from sfm_matchers.mapping.diagnosis import explain, poor_photos, read_match_graph
from sfm_matchers.mapping.mapper import reconstruct
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.mapping.triangulation import Verification, triangulate
from sfm_matchers.photos.cameras import CameraGroups, group_photos, read_photo_header

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

logger = logging.getLogger("sfm_matchers.pipelines")


def reconstruction(
    *,
    sfm_dir: str | Path,
    image_dir: str | Path,
    pairs: str | Path,
    features: str | Path,
    matches: str | Path,
    camera_mode: Literal["AUTO", "SINGLE", "PER_FOLDER", "PER_IMAGE"] = "AUTO",
    min_match_score: float | None = None,
    skip_geometric_verification: bool = False,
    image_options: Mapping[str, Any] = NO_OPTIONS,
    mapper_options: Mapping[str, Any] = NO_OPTIONS,
) -> pycolmap.Reconstruction:
    """A COLMAP model: ``sfm_dir/database.db``, ``models/``, and the largest model in `sfm_dir`.

    Args:
        sfm_dir: folder of the model.
        image_dir: folder of the images.
        pairs: pair list.
        features: feature file; the images in it are taken.
        matches: match file.
        camera_mode: which images share a camera.
        min_match_score: matches of lower score are left out.
        skip_geometric_verification: all matches are taken for right.
        image_options: camera_model, camera_params.
        mapper_options: of pycolmap's IncrementalPipelineOptions, or its mapper or triangulation.

    Returns:
        The largest model.

    Raises:
        InputError: an option is none, or no model came out.
    """
    folder, database_path = Path(sfm_dir), Path(sfm_dir) / "database.db"
    options = read_mapper_options(mapper_options)
    camera_options, cameras = _cameras(Path(image_dir), Path(features), camera_mode, image_options)
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_behind(folder)
    known_pairs = _pairs_of(pairs, features, matches)
    build_database(
        database_path,
        Path(image_dir),
        cameras,
        camera_options,
        known_pairs,
        Path(features),
        Path(matches),
        min_match_score=min_match_score,
        verify=not skip_geometric_verification,
    )
    models = reconstruct(
        database_path, Path(image_dir), folder / "models", incremental_options=options
    )
    if not models:
        raise InputError(f"no model came out: {_reason(database_path, known_pairs, image_dir)}")
    write_model(models[0], folder)
    return models[0]


def _pairs_of(pair_list: str | Path, features: str | Path, matches: str | Path) -> list[Pair]:
    """Return the pairs of a list; say what has changed in the files that tell of them."""
    for path in (features, matches):
        tell_changed(Path(path))
    return read_pairs(Path(pair_list), list_groups(Path(features)))


def _cameras(
    image_dir: Path, features: Path, camera_mode: str, image_options: Mapping[str, Any]
) -> tuple[CameraOptions, CameraGroups]:
    """Camera model and parameters, and which of the images with features share a camera."""
    check_keys(image_options, ["camera_model", "camera_params"], "--image_options")
    options = CameraOptions(
        image_options.get("camera_model", "SIMPLE_RADIAL"), image_options.get("camera_params", "")
    )
    headers = {name: read_photo_header(image_dir / name) for name in list_groups(features)}
    options.check({name: header.size for name, header in headers.items()})
    cameras = group_photos(headers, camera_mode.lower())
    logger.info("cameras: %s", cameras.reason)
    return options, cameras


def _reason(database_path: Path, pairs: list[Pair], image_dir: str | Path) -> str:
    """Why there is no model."""
    graph = read_match_graph(database_path, pairs, None)
    reason = explain(graph, [], poor_photos(graph, Path(image_dir))).reason
    return reason.removeprefix("no model: ")


def triangulation(
    *,
    reference_model: str | Path,
    sfm_dir: str | Path,
    image_dir: str | Path,
    pairs: str | Path,
    features: str | Path,
    matches: str | Path,
    min_match_score: float | None = None,
    skip_geometric_verification: bool = False,
    estimate_two_view_geometries: bool = False,
) -> pycolmap.Reconstruction:
    """Points for a model of known poses, to `sfm_dir`.

    Args:
        reference_model: COLMAP model with the poses.
        sfm_dir: folder of the model to write.
        image_dir: folder of the images.
        pairs: pair list.
        features: feature file.
        matches: match file.
        min_match_score: matches of lower score are left out.
        skip_geometric_verification: all matches are taken for right.
        estimate_two_view_geometries: verify without the known poses.

    Returns:
        The model.
    """
    verification: Verification = "known_poses"
    if skip_geometric_verification:
        verification = "none"
    elif estimate_two_view_geometries:
        verification = "two_view"
    return triangulate(
        read_model(reference_model),
        Path(sfm_dir),
        Path(image_dir),
        _pairs_of(pairs, features, matches),
        Path(features),
        Path(matches),
        verification=verification,
        min_match_score=min_match_score,
    )


def localize_sfm(
    *,
    reference_sfm: str | Path,
    queries: str | Path,
    retrieval: str | Path,
    features: str | Path,
    matches: str | Path,
    results: str | Path,
    ransac_thresh: float = 12.0,
    covisibility_clustering: bool = False,
    prepend_camera_name: bool = False,
    local_features: str | Path | None = None,
) -> list[LocalizedQuery]:
    """Poses of queries in a model.

    Args:
        reference_sfm: COLMAP model.
        queries: query list with intrinsics, or a pattern of such.
        retrieval: pairs 'query image'.
        features: feature file of queries and images.
        matches: match file.
        results: file of poses to write; a log is written beside it.
        ransac_thresh: largest reprojection error of an inlier in pixels.
        covisibility_clustering: estimate a pose for each group of images that see the same points.
        prepend_camera_name: names in the results begin with the query's folder.
        local_features: feature file with descriptors of the images, such as SIFT's, for `features`
            of a matcher without a detector: by these, places that look alike are found.

    Returns:
        A result for each query.
    """
    options = LocalizationOptions(
        max_error=ransac_thresh, covisibility_clustering=covisibility_clustering
    )
    localized = localize_queries(
        read_model(reference_sfm),
        read_queries(queries),
        _pairs_of(retrieval, features, matches),
        Path(features),
        Path(matches),
        options,
        local_features=None if local_features is None else Path(local_features),
    )
    found = list(localized)
    write_results(Path(results), found, prepend_camera_name=prepend_camera_name)
    return found


def localize_inloc(
    *,
    dataset_dir: str | Path,
    retrieval: str | Path,
    features: str | Path,
    matches: str | Path,
    results: str | Path,
    skip_matches: int = 0,
) -> list[LocalizedQuery]:
    """Poses of InLoc's queries from depth scans.

    Args:
        dataset_dir: folder of the data set.
        retrieval: pairs 'query image'.
        features: feature file of queries and cutouts.
        matches: match file.
        results: file of poses to write; a log is written beside it.
        skip_matches: least matches of an image.

    Returns:
        A result for each query, those that cannot be read first.
    """
    pairs = _pairs_of(retrieval, features, matches)
    queries, unreadable = [], []
    for name in dict.fromkeys(query for query, _ in pairs):
        try:
            size = read_photo_header(Path(dataset_dir) / name).size
        except InputError as error:
            query = Query(name, query_camera((1, 1)))
            unreadable.append(failed_query(query, str(error), [], None))
            log_outcome(unreadable[-1])
        else:
            queries.append(Query(name, query_camera(size)))
    localized = localize_in_scans(
        Path(dataset_dir),
        queries,
        pairs,
        Path(features),
        Path(matches),
        ScanOptions(skip_matches=skip_matches),
    )
    found = [*unreadable, *localized]
    write_results(Path(results), found)
    return found
