"""hloc's steps, with hloc's names and files, on this package's engine; hloc need not be installed.

    hloc extract_features --conf superpoint+mambaglue --image_dir photos --export_dir outputs
    hloc match_features --conf superpoint+mambaglue --pairs pairs.txt --export_dir outputs
    hloc match_features --conf jamma --image_dir photos --pairs pairs.txt --export_dir outputs

Options may be written with `_` or `-`. Results lie where hloc's Python functions put them. A conf
is one of those below, or a YAML file of the same form. Where hloc is installed, its own confs
(superpoint+lightglue, ...) run through it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command import prepare_process, run_guarded
from pipelines.options import add_executor_options
from sfm_matchers.confs import (
    Conf,
    DetectorFreeConf,
    SparseConf,
    check_keys,
    conf_names,
    load_conf,
)
from sfm_matchers.errors import InputError
from sfm_matchers.hloc import (
    INSTALL,
    default_weights,
    is_installed,
    names_in_hloc,
    register,
)
from sfm_matchers.runs.executors import make_executor
from sfm_matchers.weights import all_checkpoints, subject_name

if TYPE_CHECKING:
    from sfm_matchers.matching import Executor

MAX_KEYPOINTS = 8192  # hloc's default
NO_WEIGHTS = ("sift", "nearest_neighbor", "colmap_nearest_neighbor")
KINDS = {
    "extract_features": "local or global features, images",
    "match_features": "sparse, features",
    "match_dense": "detector-free, images",
}
FEATURES_OF_HLOC = "feats-superpoint-n4096-r1024"  # what hloc matches where nothing is said

logger = logging.getLogger("sfm_matchers.pipelines")


# ---------------------------------------------------------------------------------------------
# Features and matches


def extract_features(given: argparse.Namespace) -> None:
    """Local features to ``<export_dir>/<output>.h5``."""
    conf = _features_conf(given.conf)
    output = (conf or _conf_of_hloc("extract_features", given.conf))["output"]
    feature_path = given.feature_path or given.export_dir / f"{output}.h5"
    if conf is None:
        options = {"as_half": given.as_half, "image_list": given.image_list}
        options["feature_path"] = feature_path
        _run_hloc("extract_features", given.conf, given.image_dir, **options)
    else:
        _extract_features(conf, given, feature_path)
    print(feature_path)


def _extract_features(
    conf: Mapping[str, Any], given: argparse.Namespace, feature_path: Path
) -> None:
    from sfm_matchers.features.extraction import extract_features as extract
    from sfm_matchers.files.locks import exclusive
    from sfm_matchers.localization.query_files import read_image_names
    from sfm_matchers.matchers.registry import default_device
    from sfm_matchers.runs.photos import check_photos

    names = read_image_names(given.image_list) if given.image_list else None
    with exclusive(feature_path.parent):
        photos = check_photos(given.image_dir, feature_path.parent, names)
        wanted = {name: photo.fingerprint for name, photo in photos.items()}
        extract(conf, given.image_dir, wanted, feature_path, device=default_device())


def match_features(given: argparse.Namespace) -> None:
    """Sparse matches to ``<export_dir>/<features>_<output>_<pairs>.h5``, or `match_dense`."""
    conf = _conf(given.conf)
    if isinstance(conf, DetectorFreeConf) or given.conf in names_in_hloc("match_dense"):
        if given.image_dir is None:
            raise InputError(f"{given.conf} matches images, not features: give --image_dir")
        given.features, given.features_ref, given.max_kps = None, [], MAX_KEYPOINTS
        match_dense(given)
        return
    if conf is None:
        output, features = _conf_of_hloc("match_features", given.conf)["output"], FEATURES_OF_HLOC
    else:
        output, features = conf.output, conf.features["output"]
    features = given.features or features
    feature_path = Path(features)
    if not feature_path.is_file():
        feature_path = _needed(given, "export_dir") / f"{features.removesuffix('.h5')}.h5"
    if not feature_path.is_file():
        raise InputError(f"{feature_path} does not exist: run hloc extract_features")
    stem = f"{feature_path.stem}_{output}_{given.pairs.stem}"
    match_path = given.matches or _needed(given, "export_dir") / f"{stem}.h5"
    if conf is None:
        options = {"matches": match_path, "overwrite": given.overwrite}
        _run_hloc("match_features", given.conf, given.pairs, feature_path, **options)
    else:
        _match_features(conf, given, feature_path, match_path)
        if given.shard:
            return
    print(match_path)


def _match_features(
    conf: SparseConf, given: argparse.Namespace, feature_path: Path, match_path: Path
) -> None:
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.files.locks import exclusive
    from sfm_matchers.files.pair_lists import read_pairs, unique_pairs
    from sfm_matchers.files.staged import remove_staged
    from sfm_matchers.matchers.registry import (
        default_device,
        load_sparse_matcher,
        matcher_weights_fingerprint,
    )
    from sfm_matchers.matching import match_features as match

    weights, device = given.weights or default_weights(conf.model), default_device()
    pairs = unique_pairs(read_pairs(given.pairs, list_groups(feature_path)))
    with exclusive(match_path.parent, given.shard):
        if given.overwrite:
            remove_staged(match_path)
        match(
            conf,
            partial(load_sparse_matcher, conf, weights, device),
            pairs,
            feature_path,
            match_path,
            matcher_weights_fingerprint(conf, weights),
            _executor(given, device),
        )


def _executor(given: argparse.Namespace, device: str) -> Executor:
    if given.shard and given.overwrite:
        raise InputError("--overwrite would delete what other shards have done")
    return make_executor(given.workers, given.ray, device, given.shard, merge=given.merge)


def match_dense(given: argparse.Namespace) -> None:
    """Detector-free matches: ``feats_<output>.h5`` and ``<output>_<pairs>.h5``."""
    conf = _conf(given.conf)
    if isinstance(conf, SparseConf):
        raise InputError(f"{given.conf} matches features: run hloc match_features")
    output = conf.output if conf else _conf_of_hloc("match_dense", given.conf)["output"]
    feature_path = Path(given.features or "feats_")
    if feature_path.suffix not in (".h5", ".hdf5"):
        feature_path = _needed(given, "export_dir") / f"{given.features or 'feats_'}{output}.h5"
    match_path = given.matches or _needed(given, "export_dir") / f"{output}_{given.pairs.stem}.h5"
    if conf is None:
        options = {
            "matches": match_path,
            "features": feature_path,
            "features_ref": given.features_ref,
            "max_kps": given.max_kps or None,
            "overwrite": given.overwrite,
        }
        match_path.parent.mkdir(parents=True, exist_ok=True)
        _run_hloc("match_dense", given.conf, given.pairs, given.image_dir, **options)
    else:
        _match_dense(conf, given, feature_path, match_path)
        if given.shard:
            return
    print(feature_path)
    print(match_path)


def _match_dense(
    conf: DetectorFreeConf, given: argparse.Namespace, feature_path: Path, match_path: Path
) -> None:
    from sfm_matchers.files.locks import exclusive, one_at_a_time
    from sfm_matchers.files.pair_lists import read_pairs, unique_pairs
    from sfm_matchers.files.staged import remove_staged
    from sfm_matchers.keypoints.aggregation import aggregate
    from sfm_matchers.keypoints.grid import AggregationOptions
    from sfm_matchers.matchers.registry import (
        default_device,
        load_detector_free_matcher,
        matcher_weights_fingerprint,
    )
    from sfm_matchers.matching import match_images
    from sfm_matchers.photos.folders import find_images
    from sfm_matchers.runs.photos import check_photos

    weights, device = given.weights or default_weights(conf.model), default_device()
    executor = _executor(given, device)
    raw_path = match_path.with_name(f"{match_path.stem}_raw.h5")
    pairs = unique_pairs(read_pairs(given.pairs, find_images(given.image_dir)))
    names = sorted({name for pair in pairs for name in pair})
    with exclusive(match_path.parent, given.shard):
        with one_at_a_time(match_path.parent):
            photos = check_photos(given.image_dir, match_path.parent, names)
        pairs = [pair for pair in pairs if all(name in photos for name in pair)]
        if not pairs:
            raise InputError(f"{given.pairs} holds no pair of photos of {given.image_dir}")
        if given.overwrite:
            remove_staged(raw_path)
        match_images(
            conf,
            partial(load_detector_free_matcher, conf, weights, device),
            pairs,
            given.image_dir,
            {name: photo.fingerprint for name, photo in photos.items()},
            raw_path,
            weights_fingerprint=matcher_weights_fingerprint(conf, weights),
            executor=executor,
        )
        if executor.shares_with_others:
            return
        aggregate(
            pairs,
            raw_path,
            feature_path,
            match_path,
            AggregationOptions(conf.max_error, conf.cell_size, given.max_kps or None),
            {name: photo.size for name, photo in photos.items()},
            fixed_features=given.features_ref,
            existing="overwrite" if given.overwrite else "keep",
        )


# ---------------------------------------------------------------------------------------------
# Pairs


def pairs_from_exhaustive(given: argparse.Namespace) -> None:
    """Every image with every other, or each with every reference image."""
    from sfm_matchers.pairs.policies import exhaustive_pairs

    names = _names(given.image_list, given.features, "--image_list or --features")
    if given.ref_list or given.ref_features:
        references = _names(given.ref_list, given.ref_features, "--ref_list or --ref_features")
        pairs = [(name, other) for name in names for other in references]
    else:
        pairs = exhaustive_pairs(names)
    _write(given.output, pairs)


def pairs_from_retrieval(given: argparse.Namespace) -> None:
    """Each query with the database images of most similar global descriptors."""
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.pairs.policies import query_pairs

    database_path = given.db_descriptors or given.descriptors
    in_database = list_groups(database_path)
    queries = _chosen(list_groups(given.descriptors), given.query_prefix, given.query_list)
    if given.db_model:
        registered = {image.name for image in _model(given.db_model).images.values()}
        database = [name for name in in_database if name in registered]
    else:
        database = _chosen(in_database, given.db_prefix, given.db_list)
    if not queries or not database:
        raise InputError(
            f"{len(queries)} queries and {len(database)} database images have descriptors: "
            "check the prefixes, the lists and the model"
        )
    pairs = query_pairs(
        queries,
        database,
        given.descriptors,
        given.num_matched,
        min_similarity=0.0,
        database_path=database_path,
    )
    _write(given.output, pairs)


def pairs_from_covisibility(given: argparse.Namespace) -> None:
    """Each image of a model with those that share most 3D points with it."""
    from sfm_matchers.pairs.policies import covisibility_pairs

    _write(given.output, covisibility_pairs(_model(given.model), given.num_matched))


def pairs_from_poses(given: argparse.Namespace) -> None:
    """Each image of a model with the nearest that look the same way."""
    from sfm_matchers.pairs.policies import pose_pairs

    pairs = pose_pairs(_model(given.model), given.num_matched, given.rotation_threshold)
    _write(given.output, pairs)


# ---------------------------------------------------------------------------------------------
# Models and poses


def reconstruction(given: argparse.Namespace) -> None:
    """A COLMAP model: ``sfm_dir/database.db``, ``models/``, and the largest model in `sfm_dir`."""
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.files.pair_lists import read_pairs
    from sfm_matchers.files.replacing import remove_left_behind
    from sfm_matchers.mapping.camera_options import CameraOptions
    from sfm_matchers.mapping.database import build_database
    from sfm_matchers.mapping.diagnosis import explain, poor_photos, read_match_graph
    from sfm_matchers.mapping.mapper import reconstruct
    from sfm_matchers.mapping.models import write_model
    from sfm_matchers.photos.cameras import group_photos, read_photo_header

    image_options = dict(_key_value(text) for text in given.image_options)
    check_keys(image_options, ["camera_model", "camera_params"], "--image_options")
    camera_options = CameraOptions(
        image_options.get("camera_model", "SIMPLE_RADIAL"), image_options.get("camera_params", "")
    )
    mapper_options = _mapper_options(given.mapper_options)
    names = list_groups(given.features)
    headers = {name: read_photo_header(given.image_dir / name) for name in names}
    camera_options.check({name: header.size for name, header in headers.items()})
    cameras = group_photos(headers, given.camera_mode.lower())
    logger.info("cameras: %s", cameras.reason)
    given.sfm_dir.mkdir(parents=True, exist_ok=True)
    remove_left_behind(given.sfm_dir)
    database_path = given.sfm_dir / "database.db"
    pairs = read_pairs(given.pairs, names)
    build_database(
        database_path,
        given.image_dir,
        cameras,
        camera_options,
        pairs,
        given.features,
        given.matches,
        min_match_score=given.min_match_score,
        verify=not given.skip_geometric_verification,
    )
    models = reconstruct(
        database_path,
        given.image_dir,
        given.sfm_dir / "models",
        incremental_options=mapper_options,
    )
    if not models:
        graph = read_match_graph(database_path, pairs, None)
        reason = explain(graph, models, poor_photos(graph, given.image_dir)).reason
        raise InputError(f"no model came out: {reason.removeprefix('no model: ')}")
    write_model(models[0], given.sfm_dir)
    print(models[0].summary())


def triangulation(given: argparse.Namespace) -> None:
    """Points for a model of known poses, to `sfm_dir`."""
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.files.pair_lists import read_pairs
    from sfm_matchers.mapping.triangulation import triangulate

    verification: Any = "known_poses"
    if given.skip_geometric_verification:
        verification = "none"
    elif given.estimate_two_view_geometries:
        verification = "two_view"
    model = triangulate(
        _model(given.reference_model),
        given.sfm_dir,
        given.image_dir,
        read_pairs(given.pairs, list_groups(given.features)),
        given.features,
        given.matches,
        verification=verification,
        min_match_score=given.min_match_score,
    )
    print(model.summary())


def localize_sfm(given: argparse.Namespace) -> None:
    """Poses of queries in a model."""
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.files.pair_lists import read_pairs
    from sfm_matchers.localization.in_model import localize_queries
    from sfm_matchers.localization.poses import LocalizationOptions
    from sfm_matchers.localization.query_files import read_queries

    options = LocalizationOptions(
        max_error=given.ransac_thresh, covisibility_clustering=given.covisibility_clustering
    )
    results = localize_queries(
        _model(given.reference_sfm),
        read_queries(given.queries),
        read_pairs(given.retrieval, list_groups(given.features)),
        given.features,
        given.matches,
        options,
    )
    _write_poses(given.results, list(results), prepend_camera_name=given.prepend_camera_name)


def localize_inloc(given: argparse.Namespace) -> None:
    """Poses of InLoc's queries from depth scans."""
    from pipelines.inloc import query_camera
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.files.pair_lists import read_pairs
    from sfm_matchers.localization.in_depth_scans import ScanOptions, localize_in_scans
    from sfm_matchers.localization.poses import Query, failed_query
    from sfm_matchers.photos.cameras import read_photo_header

    pairs = read_pairs(given.retrieval, list_groups(given.features))
    queries, unreadable = [], []
    for name in dict.fromkeys(query for query, _ in pairs):
        try:
            size = read_photo_header(given.dataset_dir / name).size
        except InputError as error:
            query = Query(name, query_camera((1, 1)))
            unreadable.append(failed_query(query, str(error), [], None))
        else:
            queries.append(Query(name, query_camera(size)))
    results = localize_in_scans(
        given.dataset_dir,
        queries,
        pairs,
        given.features,
        given.matches,
        ScanOptions(skip_matches=given.skip_matches),
    )
    _write_poses(given.results, [*unreadable, *results])


def _write_poses(path: Path, results: Sequence[Any], *, prepend_camera_name: bool = False) -> None:
    from sfm_matchers.localization.poses import count_by_status, write_results

    log_path = write_results(path, results, prepend_camera_name=prepend_camera_name)
    print(", ".join(f"{count} {status}" for status, count in count_by_status(results).items()))
    print(path)
    print(log_path)


# ---------------------------------------------------------------------------------------------
# Their inputs


def _conf(name: str) -> Conf | None:
    """One of our confs, or one of the user's in a YAML file; None for hloc's."""
    is_ours = name in conf_names() or name.endswith((".yaml", ".yml"))
    return load_conf(name) if is_ours else None


def _features_conf(name: str) -> Mapping[str, Any] | None:
    """The features of the conf whose output, or which itself, is called so; None for hloc's."""
    for conf in map(load_conf, conf_names()):
        if isinstance(conf, SparseConf) and conf.features["output"] == f"feats-{name}":
            return conf.features
    named = _conf(name)
    if isinstance(named, DetectorFreeConf):
        raise InputError(f"{name} matches images and has no features: run hloc match_dense")
    return named.features if named else None


def _conf_of_hloc(step: str, name: str) -> Mapping[str, Any]:
    """One of hloc's own confs.

    Raises:
        InputError: hloc has none of this name, or is not installed.
        MissingExtraError: something that hloc needs is not installed.
    """
    if name in names_in_hloc(step):
        register()
        return dict(importlib.import_module(f"hloc.{step}").confs[name])
    ours = _our_lines()
    names = [*ours[step], *(ours["match_dense"] if step == "match_features" else [])]
    known = ", ".join(dict.fromkeys([*names, *names_in_hloc(step)]))
    hint = "" if is_installed() else f"; hloc's own confs need {INSTALL}"
    raise InputError(f"{step}: no conf {name!r}; there are {known}{hint}")


def _run_hloc(step: str, name: str, *arguments: Any, **options: Any) -> None:
    """Run a step through hloc, with a conf of its own."""
    importlib.import_module(f"hloc.{step}").main(_conf_of_hloc(step, name), *arguments, **options)


def _needed(given: argparse.Namespace, name: str) -> Path:
    value = getattr(given, name)
    if value is None:
        raise InputError(f"give --{name}, or the paths of the files")
    return Path(value)


def _model(path: Path) -> Any:
    from sfm_matchers.mapping.models import read_model

    return read_model(path)


def _names(listed: str | None, features: Path | None, options: str) -> list[str]:
    from sfm_matchers.files.hdf5 import list_groups
    from sfm_matchers.localization.query_files import read_image_names

    if listed is not None:
        return read_image_names(listed)
    if features is not None:
        return list_groups(features)
    raise InputError(f"give {options}")


def _chosen(names: list[str], prefix: list[str] | None, listed: str | None) -> list[str]:
    """Those of some names that start with a prefix, or are listed; all if neither is given."""
    from sfm_matchers.localization.query_files import read_image_names

    if prefix:
        return [name for name in names if name.startswith(tuple(prefix))]
    if listed is None:
        return names
    wanted = read_image_names(listed)
    known = set(names)
    if not known.issuperset(wanted):
        missing = [name for name in wanted if name not in known]
        logger.warning(
            "left out: %d images of %s without descriptor, the first is %s",
            len(missing),
            listed,
            missing[0],
        )
    return [name for name in wanted if name in known]


def _write(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    from sfm_matchers.files.pair_lists import write_pairs

    write_pairs(path, pairs)
    print(f"{len(pairs)} pairs: {path}")


def _mapper_options(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` of pycolmap's pipeline options, or of the mapper's within, nested as there."""
    import pycolmap
    import yaml

    pipeline = pycolmap.IncrementalPipelineOptions()
    levels: dict[str, Any] = {
        "": pipeline,
        "mapper": pipeline.mapper,
        "triangulation": pipeline.triangulation,
    }
    options: dict[str, Any] = {}
    known = [key for holder in levels.values() for key in holder.todict()]
    for key, text in map(_key_value, texts):
        check_keys([key], known, "--mapper_options")
        level = next(name for name, holder in levels.items() if hasattr(holder, key))
        expected, value = type(getattr(levels[level], key)), yaml.safe_load(text)
        if expected is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, expected):
            raise InputError(f"--mapper_options: {key} takes {expected.__name__}, found {text!r}")
        (options.setdefault(level, {}) if level else options)[key] = value
    return options


def _key_value(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not value:
        raise InputError(f"expected key=value, found {text!r}")
    return key, value


# ---------------------------------------------------------------------------------------------
# Command line


def build_parser() -> argparse.ArgumentParser:
    """Return the command line; nothing heavy is imported for it."""
    parser = argparse.ArgumentParser(
        prog="hloc",
        description=f"{__doc__}\n{_conf_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")

    def step(run: Callable[[argparse.Namespace], None]) -> Callable[..., argparse.Action]:
        text = (run.__doc__ or "").strip()
        one = steps.add_parser(run.__name__, help=text, description=text)
        one.set_defaults(run=run)
        return one.add_argument

    _add_matching_steps(step)
    _add_pairs_steps(step)
    _add_model_steps(step)
    return parser


Step = Callable[[Callable[[argparse.Namespace], None]], Callable[..., argparse.Action]]


def _add_matching_steps(step: Step) -> None:
    add = step(extract_features)
    add("--image_dir", type=Path, required=True)
    add("--export_dir", type=Path, required=True)
    add("--conf", default="sift", help="see hloc --help (default: %(default)s)")
    add("--image_list", help="file, or pattern of files, with the names of the images to take")
    add("--feature_path", type=Path, help="write there instead")
    add("--as_half", action="store_true", help="of hloc's confs; ours keep keypoints in float32")

    add = step(match_features)
    add("--pairs", type=Path, required=True)
    add("--features", help="feature file, or its stem in the export folder (default: the conf's)")
    add("--export_dir", type=Path)
    add("--matches", type=Path, help="write there instead")
    add("--conf", default="sift", help="see hloc --help (default: %(default)s)")
    add("--image_dir", type=Path, help="for detector-free confs")
    _add_matching_options(add)

    add = step(match_dense)
    add("--pairs", type=Path, required=True)
    add("--image_dir", type=Path, required=True)
    add("--export_dir", type=Path)
    add("--matches", type=Path, help="write there instead")
    add("--features", help="prefix of the feature file, or a path (default: feats_)")
    add("--conf", default="jamma", help="see hloc --help (default: %(default)s)")
    add(
        "--max_kps",
        type=int,
        default=MAX_KEYPOINTS,
        help="keypoints per image; 0 keeps all, and the exact points of queries "
        "(default: %(default)s)",
    )
    add("--features_ref", type=Path, nargs="+", default=[], help="keypoints that stay as they are")
    _add_matching_options(add)


def _add_matching_options(add: Callable[..., argparse.Action]) -> None:
    add(
        "--weights", help="bundled, official or a file (default: bundled if there are, or official)"
    )
    add_executor_options(add, shards=True)
    add("--overwrite", action="store_true", help="start afresh")


def _add_pairs_steps(step: Step) -> None:
    add = step(pairs_from_exhaustive)
    add("--output", type=Path, required=True)
    add("--image_list", help="file, or pattern of files, with names")
    add("--features", type=Path, help="take the names of a feature file")
    add("--ref_list")
    add("--ref_features", type=Path)

    add = step(pairs_from_retrieval)
    add("--descriptors", type=Path, required=True, help="feature file with global descriptors")
    add("--output", type=Path, required=True)
    add("--num_matched", type=int, required=True)
    add("--query_prefix", nargs="+")
    add("--query_list")
    add("--db_prefix", nargs="+")
    add("--db_list")
    add("--db_model", type=Path)
    add("--db_descriptors", type=Path, help="those of the database, if in a file of their own")

    add = step(pairs_from_covisibility)
    add("--model", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--num_matched", type=int, required=True)

    add = step(pairs_from_poses)
    add("--model", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--num_matched", type=int, required=True)
    add("--rotation_threshold", type=float, default=30.0, help="degrees (default: %(default)s)")


def _add_model_steps(step: Step) -> None:
    add = step(reconstruction)
    _add_model_inputs(add)
    add("--camera_mode", choices=("AUTO", "SINGLE", "PER_FOLDER", "PER_IMAGE"), default="AUTO")
    add(
        "--image_options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="camera_model, camera_params",
    )
    add(
        "--mapper_options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of pycolmap's IncrementalPipelineOptions, or its mapper or triangulation",
    )

    add = step(triangulation)
    add("--reference_model", "--reference_sfm_model", type=Path, required=True)
    _add_model_inputs(add)
    add("--estimate_two_view_geometries", action="store_true")

    add = step(localize_sfm)
    add("--reference_sfm", type=Path, required=True)
    add("--queries", required=True, help="query list with intrinsics, or a pattern of such")
    _add_localization_inputs(add)
    add("--ransac_thresh", type=float, default=12.0, help="pixels (default: %(default)s)")
    add("--covisibility_clustering", action="store_true")
    add("--prepend_camera_name", action="store_true")

    add = step(localize_inloc)
    add("--dataset_dir", type=Path, required=True)
    _add_localization_inputs(add)
    add("--skip_matches", type=int, default=0, help="least matches of an image")


def _add_model_inputs(add: Callable[..., argparse.Action]) -> None:
    add("--sfm_dir", type=Path, required=True)
    add("--image_dir", type=Path, required=True)
    add("--pairs", type=Path, required=True)
    add("--features", type=Path, required=True)
    add("--matches", type=Path, required=True)
    add("--min_match_score", type=float)
    add("--skip_geometric_verification", action="store_true")
    add("--verbose", action="store_true", help="accepted; progress is always shown")


def _add_localization_inputs(add: Callable[..., argparse.Action]) -> None:
    add("--retrieval", type=Path, required=True, help="pairs 'query image'")
    add("--features", type=Path, required=True)
    add("--matches", type=Path, required=True)
    add("--results", type=Path, required=True)


def _conf_table() -> str:
    """The confs, a line each: kind, input, licence of the weights."""
    lines = []
    for step, ours in _our_lines().items():
        title = "match_dense, or match_features with --image_dir" if step == "match_dense" else step
        lines += [f"{title} --conf:", *(f"  {name:24s}{text}" for name, text in ours.items())]
        theirs = [name for name in names_in_hloc(step) if name not in ours]
        lines += [f"  {name:24s}{KINDS[step]}, hloc's own; weights: see hloc" for name in theirs]
    return "\n".join(lines)


def _our_lines() -> dict[str, dict[str, str]]:
    """Step -> name of a conf of ours -> what it is."""
    lines: dict[str, dict[str, str]] = {step: {} for step in KINDS}
    for conf in map(load_conf, conf_names()):
        licences = _licences(subject_name(conf.model["name"], conf.model.get("features")))
        if isinstance(conf, DetectorFreeConf):
            lines["match_dense"][conf.name] = f"detector-free, images; weights: {licences}"
            continue
        output, front_end = conf.features["output"], conf.features["model"]["name"]
        of_features = _licences(front_end)
        name = output.removeprefix("feats-")
        lines["extract_features"][name] = f"{front_end}, images; weights: {of_features}"
        if front_end not in NO_WEIGHTS:
            licences += f"; of {front_end}: {of_features}"
        lines["match_features"][conf.name] = f"sparse, {output}; weights: {licences}"
    return lines


def _licences(subject: str) -> str:
    if subject in NO_WEIGHTS:
        return "none"
    found = [entry for entry in all_checkpoints() if entry.subject == subject]
    return ", ".join(f"{entry.source} ({entry.licence})" for entry in found) or "a file of yours"


def _with_underscores(arguments: Sequence[str]) -> list[str]:
    """``--image-dir`` is ``--image_dir``."""
    done = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        done.append(name + equals + value)
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input, 130 after Ctrl-C."""
    if arguments is None:
        prepare_process()
    given = build_parser().parse_args(
        _with_underscores(sys.argv[1:] if arguments is None else arguments)
    )

    def job() -> int:
        given.run(given)
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
