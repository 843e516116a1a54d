"""hloc's steps, with hloc's names and files, on this package's engine; hloc need not be installed.

    hloc extract_features --image_dir photos --export_dir outputs --conf sift-n2048
    hloc match_features --features feats-sift-n2048 --pairs pairs.txt --export_dir outputs \\
        --conf sift+mambaglue
    hloc match_features --image_dir photos --pairs pairs.txt --export_dir outputs --conf jamma

Options may be written with `_` or `-`. Results lie where hloc's Python functions put them. Where
hloc is installed, its own confs (superpoint+lightglue, ...) run through it.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfm_matchers.confs import DetectorFreeConf, SparseConf, conf_names, load_conf
from sfm_matchers.errors import InputError, SfmMatchersError
from sfm_matchers.hloc import (
    INSTALL,
    dense_confs,
    extractor_confs,
    is_installed,
    register,
)

# What a photo's weights may be used for: by network or front-end.
LICENCES = {
    "sift": "no weights",
    "nearest_neighbor": "no weights",
    "aliked-n16": "BSD-3-Clause",
    "disk": "Apache-2.0",
    "superpoint": "Magic Leap, non-commercial",
    "jamma": "bundled Apache-2.0, official MIT",
    "eloftr": "bundled or official Apache-2.0",
    "mambaglue": "bundled or official Apache-2.0",
}


# ---------------------------------------------------------------------------------------------
# Steps


def extract_features(given: argparse.Namespace) -> None:
    """Local features to ``<export_dir>/<output>.h5``."""
    if given.conf not in extractor_confs():
        return _run_with_hloc("extract_features", given, "image_dir", "export_dir", "image_list")
    from pipelines.steps import check_photos
    from sfm_matchers.features import extract_features as extract
    from sfm_matchers.localization import read_image_names
    from sfm_matchers.matchers import default_device

    conf = _features_conf(given.conf)
    feature_path = given.feature_path or given.export_dir / f"{conf['output']}.h5"
    names = read_image_names(given.image_list) if given.image_list else None
    photos = check_photos(given.image_dir, feature_path.parent, names)
    wanted = {name: photo.fingerprint for name, photo in photos.items()}
    extract(conf, given.image_dir, wanted, feature_path, device=default_device())
    print(feature_path)


def match_features(given: argparse.Namespace) -> None:
    """Sparse matches to ``<export_dir>/<features>_<output>_<pairs>.h5``, or `match_dense`."""
    if given.conf not in _our_confs():
        inputs = ("pairs", "features", "export_dir", "matches")
        return _run_with_hloc("match_features", given, *inputs)
    conf = load_conf(given.conf)
    if isinstance(conf, DetectorFreeConf):
        if given.image_dir is None:
            raise InputError(f"{conf.name} matches images, not features: give --image_dir")
        given.features = None
        return match_dense(given)
    from sfm_matchers.matchers import (
        default_device,
        load_sparse_matcher,
        matcher_weights_fingerprint,
    )
    from sfm_matchers.matching import match_features as match
    from sfm_matchers.storage import read_pairs, unique_pairs

    features = given.features or conf.features["output"]
    feature_path = Path(features)
    if not feature_path.exists():
        feature_path = _needed(given, "export_dir") / f"{features}.h5"
    stem = f"{feature_path.stem}_{conf.output}_{given.pairs.stem}"
    match_path = given.matches or _needed(given, "export_dir") / f"{stem}.h5"
    match(
        conf,
        lambda: load_sparse_matcher(conf, given.weights, default_device()),
        unique_pairs(read_pairs(given.pairs)),
        feature_path,
        match_path,
        matcher_weights_fingerprint(conf, given.weights),
    )
    print(match_path)
    return None


def match_dense(given: argparse.Namespace) -> None:
    """Detector-free matches: ``feats_<output>.h5`` and ``<output>_<pairs>.h5``."""
    if given.conf not in dense_confs():
        inputs = ("pairs", "image_dir", "export_dir", "matches", "features")
        return _run_with_hloc("match_dense", given, *inputs)
    from pipelines.steps import check_photos
    from sfm_matchers.keypoints import AggregationOptions, aggregate
    from sfm_matchers.matchers import (
        default_device,
        load_detector_free_matcher,
        matcher_weights_fingerprint,
    )
    from sfm_matchers.matching import match_images
    from sfm_matchers.storage import read_pairs, unique_pairs

    conf = load_conf(given.conf)
    assert isinstance(conf, DetectorFreeConf)
    prefix = given.features or "feats_"
    feature_path = Path(prefix)
    if not feature_path.suffix:
        feature_path = _needed(given, "export_dir") / f"{prefix}{conf.output}.h5"
    stem = f"{conf.output}_{given.pairs.stem}"
    match_path = given.matches or _needed(given, "export_dir") / f"{stem}.h5"
    raw_path = match_path.with_name(match_path.stem + "_raw.h5")
    pairs = unique_pairs(read_pairs(given.pairs))
    names = sorted({name for pair in pairs for name in pair})
    photos = check_photos(given.image_dir, match_path.parent, names)
    pairs = [pair for pair in pairs if all(name in photos for name in pair)]
    if not pairs:
        raise InputError(f"{given.pairs} holds no pair of photos of {given.image_dir}")
    match_images(
        conf,
        lambda: load_detector_free_matcher(conf, given.weights, default_device()),
        pairs,
        given.image_dir,
        {name: photo.fingerprint for name, photo in photos.items()},
        raw_path,
        weights_fingerprint=matcher_weights_fingerprint(conf, given.weights),
    )
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
    print(feature_path)
    print(match_path)
    return None


def pairs_from_exhaustive(given: argparse.Namespace) -> None:
    """Every image with every other, or each with every reference image."""
    from sfm_matchers.pairs import exhaustive_pairs

    names = _names(given.image_list, given.features, "--image_list or --features")
    if given.ref_list or given.ref_features:
        references = _names(given.ref_list, given.ref_features, "--ref_list or --ref_features")
        pairs = [(name, other) for name in names for other in references]
    else:
        pairs = exhaustive_pairs(names)
    _write(given.output, pairs)


def pairs_from_retrieval(given: argparse.Namespace) -> None:
    """Each query with the data base images of most similar global descriptors."""
    from sfm_matchers.pairs import query_pairs
    from sfm_matchers.storage import list_groups

    described = list_groups(given.descriptors)
    in_database = list_groups(given.db_descriptors) if given.db_descriptors else described
    if given.db_descriptors and given.db_descriptors != given.descriptors:
        raise InputError("--db_descriptors: put the descriptors of all images into one file")
    queries = _chosen(described, given.query_prefix, given.query_list)
    database = _chosen(in_database, given.db_prefix, given.db_list)
    if given.db_model:
        registered = {image.name for image in _model(given.db_model).images.values()}
        database = [name for name in database if name in registered]
    if not queries or not database:
        raise InputError(
            f"{len(queries)} queries and {len(database)} data base images have descriptors: "
            "check the prefixes, the lists and the model"
        )
    _write(given.output, query_pairs(queries, database, given.descriptors, given.num_matched, 0.0))


def pairs_from_covisibility(given: argparse.Namespace) -> None:
    """Each image of a model with those that share most 3D points with it."""
    from sfm_matchers.pairs import covisibility_pairs

    _write(given.output, covisibility_pairs(_model(given.model), given.num_matched))


def pairs_from_poses(given: argparse.Namespace) -> None:
    """Each image of a model with the nearest that look the same way."""
    from sfm_matchers.pairs import pose_pairs

    pairs = pose_pairs(_model(given.model), given.num_matched, given.rotation_threshold)
    _write(given.output, pairs)


def reconstruction(given: argparse.Namespace) -> None:
    """A COLMAP model: ``sfm_dir/database.db``, ``models/``, and the largest model in `sfm_dir`."""
    from sfm_matchers.cameras import CameraGroups, group_photos, read_photo_header
    from sfm_matchers.mapping import CameraOptions, build_database, reconstruct
    from sfm_matchers.storage import list_groups, read_pairs

    names = list_groups(given.features)
    if given.camera_mode == "AUTO":
        cameras = group_photos({n: read_photo_header(given.image_dir / n) for n in names})
    else:
        together = given.camera_mode == "SINGLE"
        groups = [names] if together else [[name] for name in names]
        cameras = CameraGroups(groups, f"--camera_mode {given.camera_mode}")
    options = dict(_key_value(text) for text in given.image_options)
    camera_options = CameraOptions(
        options.pop("camera_model", "SIMPLE_RADIAL"), options.pop("camera_params", "")
    )
    if options:
        raise InputError(f"--image_options: unknown {', '.join(options)}")
    given.sfm_dir.mkdir(parents=True, exist_ok=True)
    database_path = given.sfm_dir / "database.db"
    build_database(
        database_path,
        given.image_dir,
        cameras,
        camera_options,
        read_pairs(given.pairs, names),
        given.features,
        given.matches,
        min_match_score=given.min_match_score,
        verify=not given.skip_geometric_verification,
    )
    models = reconstruct(database_path, given.image_dir, given.sfm_dir / "models")
    if not models:
        raise InputError("no model came out: no two images have enough verified matches")
    models[0].write(given.sfm_dir)
    print(models[0].summary())


def triangulation(given: argparse.Namespace) -> None:
    """Points for a model of known poses, to ``sfm_dir``."""
    from sfm_matchers.storage import read_pairs
    from sfm_matchers.triangulation import triangulate

    verification: Any = "known_poses"
    if given.skip_geometric_verification:
        verification = "none"
    elif given.estimate_two_view_geometries:
        verification = "two_view"
    model = triangulate(
        _model(given.reference_model),
        given.sfm_dir,
        given.image_dir,
        read_pairs(given.pairs),
        given.features,
        given.matches,
        verification=verification,
        min_match_score=given.min_match_score,
    )
    print(model.summary())


def localize_sfm(given: argparse.Namespace) -> None:
    """Poses of queries in a model."""
    from sfm_matchers.localization import (
        LocalizationOptions,
        count_by_status,
        localize_queries,
        read_queries,
        write_results,
    )
    from sfm_matchers.storage import read_pairs

    options = LocalizationOptions(
        max_error=given.ransac_thresh, covisibility_clustering=given.covisibility_clustering
    )
    results = list(
        localize_queries(
            _model(given.reference_sfm),
            read_queries(given.queries),
            read_pairs(given.retrieval),
            given.features,
            given.matches,
            options,
        )
    )
    write_results(given.results, results, prepend_camera_name=given.prepend_camera_name)
    print(", ".join(f"{count} {status}" for status, count in count_by_status(results).items()))


def localize_inloc(given: argparse.Namespace) -> None:
    """Poses of InLoc's queries from depth scans."""
    from pipelines.inloc import query_camera
    from sfm_matchers.images import read_image
    from sfm_matchers.localization import Query, count_by_status, write_results
    from sfm_matchers.scans import ScanOptions, localize_in_scans
    from sfm_matchers.storage import read_pairs

    pairs = read_pairs(given.retrieval)
    queries = []
    for name in dict.fromkeys(query for query, _ in pairs):
        height, width = read_image(given.dataset_dir / name, gray=True).shape
        queries.append(Query(name, query_camera((width, height))))
    results = list(
        localize_in_scans(
            given.dataset_dir,
            queries,
            pairs,
            given.features,
            given.matches,
            ScanOptions(skip_matches=given.skip_matches),
        )
    )
    write_results(given.results, results)
    print(", ".join(f"{count} {status}" for status, count in count_by_status(results).items()))


# ---------------------------------------------------------------------------------------------
# Their inputs


def _our_confs() -> list[str]:
    return conf_names()


def _features_conf(name: str) -> Mapping[str, Any]:
    """The features part of the conf whose front-end is called so."""
    for conf in map(load_conf, conf_names()):
        if isinstance(conf, SparseConf) and conf.features["output"] == f"feats-{name}":
            return conf.features
    raise InputError(f"no front-end {name!r}")


def _run_with_hloc(step: str, given: argparse.Namespace, *names: str) -> None:
    """Run a step with a conf of hloc's own through hloc."""
    if not is_installed():
        ours = {"extract_features": list(extractor_confs()), "match_dense": list(dense_confs())}
        known = ", ".join(ours.get(step, _our_confs()))
        raise InputError(
            f"{step}: no conf {given.conf!r}; there are {known}; hloc's own confs need {INSTALL}"
        )
    register()
    module = importlib.import_module(f"hloc.{step}")
    if given.conf not in module.confs:
        raise InputError(f"{step}: no conf {given.conf!r}; there are {', '.join(module.confs)}")
    arguments = {name: getattr(given, name) for name in names}
    module.main(module.confs[given.conf], **{k: v for k, v in arguments.items() if v is not None})


def _needed(given: argparse.Namespace, name: str) -> Path:
    value = getattr(given, name)
    if value is None:
        raise InputError(f"give --{name}, or the paths of the files")
    return Path(value)


def _model(path: Path) -> Any:
    import pycolmap

    import sfm_matchers  # noqa: F401 - before pycolmap

    try:
        return pycolmap.Reconstruction(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{path} is not a COLMAP model: {' '.join(str(error).split())}") from error


def _names(listed: Path | None, features: Path | None, options: str) -> list[str]:
    from sfm_matchers.localization import read_image_names
    from sfm_matchers.storage import list_groups

    if listed is not None:
        return read_image_names(listed)
    if features is not None:
        return list_groups(features)
    raise InputError(f"give {options}")


def _chosen(names: list[str], prefix: list[str] | None, listed: Path | None) -> list[str]:
    from sfm_matchers.localization import read_image_names

    if listed is not None:
        wanted = set(read_image_names(listed))
        return [name for name in names if name in wanted]
    return [name for name in names if name.startswith(tuple(prefix))] if prefix else names


def _write(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    from sfm_matchers.storage import write_pairs

    write_pairs(path, pairs)
    print(f"{len(pairs)} pairs: {path}")


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

    add = step(extract_features)
    add("--image_dir", type=Path, required=True)
    add("--export_dir", type=Path, required=True)
    add("--conf", default="sift-n2048", help="see hloc --help (default: %(default)s)")
    add("--image_list", help="file, or pattern of files, with the names of the images to take")
    add("--feature_path", type=Path, help="write there instead")
    add("--as_half", action="store_true", help="accepted; keypoints are float32 either way")

    add = step(match_features)
    add("--pairs", type=Path, required=True)
    add("--features", help="feature file, or its stem in the export folder (default: the conf's)")
    add("--export_dir", type=Path)
    add("--matches", type=Path, help="write there instead")
    add("--conf", default="sift+mambaglue", help="see hloc --help (default: %(default)s)")
    add("--image_dir", type=Path, help="for detector-free confs")
    _add_dense_options(add)

    add = step(match_dense)
    add("--pairs", type=Path, required=True)
    add("--image_dir", type=Path, required=True)
    add("--export_dir", type=Path)
    add("--matches", type=Path, help="write there instead")
    add("--features", help="prefix of the feature file, or a path (default: feats_)")
    add("--conf", default="jamma", help="see hloc --help (default: %(default)s)")
    _add_dense_options(add)

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
    add("--db_descriptors", type=Path)

    add = step(pairs_from_covisibility)
    add("--model", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--num_matched", type=int, required=True)

    add = step(pairs_from_poses)
    add("--model", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--num_matched", type=int, required=True)
    add("--rotation_threshold", type=float, default=30.0, help="degrees (default: %(default)s)")

    add = step(reconstruction)
    add("--sfm_dir", type=Path, required=True)
    add("--image_dir", type=Path, required=True)
    _add_matches(add)
    add("--camera_mode", choices=("AUTO", "SINGLE", "PER_IMAGE"), default="AUTO")
    add("--image_options", nargs="+", default=[], metavar="KEY=VALUE")

    add = step(triangulation)
    add("--sfm_dir", type=Path, required=True)
    add("--reference_model", "--reference_sfm_model", type=Path, required=True)
    add("--image_dir", type=Path, required=True)
    _add_matches(add)
    add("--estimate_two_view_geometries", action="store_true")

    add = step(localize_sfm)
    add("--reference_sfm", type=Path, required=True)
    add("--queries", required=True, help="query list with intrinsics, or a pattern of such")
    add("--retrieval", type=Path, required=True, help="pairs 'query image'")
    add("--features", type=Path, required=True)
    add("--matches", type=Path, required=True)
    add("--results", type=Path, required=True)
    add("--ransac_thresh", type=float, default=12.0, help="pixels (default: %(default)s)")
    add("--covisibility_clustering", action="store_true")
    add("--prepend_camera_name", action="store_true")

    add = step(localize_inloc)
    add("--dataset_dir", type=Path, required=True)
    add("--retrieval", type=Path, required=True)
    add("--features", type=Path, required=True)
    add("--matches", type=Path, required=True)
    add("--results", type=Path, required=True)
    add("--skip_matches", type=int, default=0, help="least matches of an image")
    return parser


def _add_dense_options(add: Callable[..., argparse.Action]) -> None:
    add("--weights", default="bundled", help="bundled, official or a file")
    add("--max_kps", type=int, default=8192, help="keypoints per image; 0 keeps exact points")
    add("--features_ref", type=Path, nargs="+", default=[], help="keypoints that stay as they are")
    add("--overwrite", action="store_true", help="build existing keypoints anew")


def _add_matches(add: Callable[..., argparse.Action]) -> None:
    add("--pairs", type=Path, required=True)
    add("--features", type=Path, required=True)
    add("--matches", type=Path, required=True)
    add("--min_match_score", type=float)
    add("--skip_geometric_verification", action="store_true")
    add("--verbose", action="store_true", help="accepted; progress is always shown")


def _conf_table() -> str:
    """The confs, a line each: kind, input, licence of the weights."""
    lines = ["extract_features --conf:"]
    for name, extractor in sorted(extractor_confs().items()):
        front_end = extractor["model"]["front_end"]
        lines.append(f"  {name:24s}{front_end} on RGB images; {LICENCES[front_end]}")
    lines.append("match_features --conf:")
    for conf in map(load_conf, conf_names()):
        network = conf.model["name"]
        licence = LICENCES.get(network, "its own licence")
        if isinstance(conf, SparseConf):
            kind = f"sparse, on {conf.features['output']}"
        else:
            kind = "detector-free (also match_dense), on images"
        lines.append(f"  {conf.name:24s}{kind}; {licence}")
    if is_installed():
        lines.append("and the confs of hloc, which is installed")
    return "\n".join(lines)


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
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    given = build_parser().parse_args(
        _with_underscores(sys.argv[1:] if arguments is None else arguments)
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        given.run(given)
    except SfmMatchersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
