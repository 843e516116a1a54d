"""hloc's steps that extract and match: with our engine for our confs, through hloc for its own.

The engine needs torch and is loaded when a step runs, so that a step's ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfm_matchers.confs import DetectorFreeConf, SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.hloc import names_in_hloc
from sfm_matchers.hloc.steps.confs import conf_of_hloc, our_conf, our_features, run_hloc
from sfm_matchers.hloc.steps.executors import ExecutorOptions

MAX_KEYPOINTS = 8192  # hloc's default
FEATURES_OF_HLOC = "feats-superpoint-n4096-r1024"  # what hloc matches where nothing is said
ONE_PROCESS = ExecutorOptions()


def extract_features(
    *,
    image_dir: str | Path,
    export_dir: str | Path,
    conf: str = "sift",
    image_list: str | Path | None = None,
    feature_path: str | Path | None = None,
    as_half: bool = False,
) -> Path:
    """Local features to ``<export_dir>/<output>.h5``.

    Args:
        image_dir: folder of the images.
        export_dir: folder of the feature file.
        conf: see hloc --help.
        image_list: file, or pattern of files, with the names of the images to take.
        feature_path: write there instead.
        as_half: of hloc's confs; ours keep keypoints in float32.

    Returns:
        The feature file.

    Raises:
        InputError: there is no such conf, or it has no features.
    """
    ours = our_features(conf)
    output = conf_of_hloc("extract_features", conf)["output"] if ours is None else ours.output
    path = Path(feature_path or Path(export_dir) / f"{output}.h5")
    if ours is None:
        options = {"as_half": as_half, "image_list": image_list, "feature_path": path}
        run_hloc("extract_features", conf, Path(image_dir), **options)
    else:
        from sfm_matchers.hloc.steps import engine

        engine.extract(ours, Path(image_dir), image_list, path)
    return path


def match_features(
    *,
    pairs: str | Path,
    features: str | Path | None = None,
    export_dir: str | Path | None = None,
    matches: str | Path | None = None,
    conf: str = "sift",
    image_dir: str | Path | None = None,
    weights: str | None = None,
    executor: ExecutorOptions = ONE_PROCESS,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Sparse matches to ``<export_dir>/<features>_<output>_<pairs>.h5``, or `match_dense`.

    Args:
        pairs: pair list.
        features: feature file, or its stem in the export folder (default: the conf's).
        export_dir: folder of the files.
        matches: write there instead.
        conf: see hloc --help.
        image_dir: for detector-free confs.
        weights: bundled, official or a file (default: bundled if there are, or official).
        executor: which processes match.
        overwrite: start afresh.

    Returns:
        The files that are complete: none where other shards have to be matched yet.

    Raises:
        InputError: there is no such conf, or a file or folder is not given or not there.
    """
    ours = our_conf(conf)
    if isinstance(ours, DetectorFreeConf) or conf in names_in_hloc("match_dense"):
        if image_dir is None:
            raise InputError(f"{conf} matches images, not features: give --image_dir")
        return match_dense(
            pairs=pairs,
            image_dir=image_dir,
            export_dir=export_dir,
            matches=matches,
            conf=conf,
            weights=weights,
            executor=executor,
            overwrite=overwrite,
        )
    feature_path, match_path = _sparse_files(ours, conf, Path(pairs), features, export_dir, matches)
    if ours is None:
        options = {"matches": match_path, "overwrite": overwrite}
        run_hloc("match_features", conf, Path(pairs), feature_path, **options)
        return (match_path,)
    from sfm_matchers.hloc.steps import engine

    is_whole = engine.match_sparse(
        ours, Path(pairs), feature_path, match_path, weights, executor, overwrite=overwrite
    )
    return (match_path,) if is_whole else ()


def _sparse_files(
    ours: SparseConf | None,
    conf: str,
    pairs: Path,
    features: str | Path | None,
    export_dir: str | Path | None,
    matches: str | Path | None,
) -> tuple[Path, Path]:
    """The feature file, which is there, and the match file."""
    if ours is None:
        output, default = conf_of_hloc("match_features", conf)["output"], FEATURES_OF_HLOC
    else:
        output, default = ours.output, ours.features.output
    feature_path = Path(features or default)
    if not feature_path.is_file():
        stem = str(features or default).removesuffix(".h5")
        feature_path = _folder(export_dir) / f"{stem}.h5"
    if not feature_path.is_file():
        raise InputError(f"{feature_path} does not exist: run hloc extract_features")
    stem = f"{feature_path.stem}_{output}_{pairs.stem}"
    return feature_path, Path(matches or _folder(export_dir) / f"{stem}.h5")


def match_dense(
    *,
    pairs: str | Path,
    image_dir: str | Path,
    export_dir: str | Path | None = None,
    matches: str | Path | None = None,
    features: str | Path | None = None,
    conf: str = "jamma",
    max_kps: int = MAX_KEYPOINTS,
    features_ref: Sequence[str | Path] = (),
    weights: str | None = None,
    executor: ExecutorOptions = ONE_PROCESS,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Detector-free matches: ``feats_<output>.h5`` and ``<output>_<pairs>.h5``.

    Args:
        pairs: pair list.
        image_dir: folder of the images.
        export_dir: folder of the files.
        matches: write there instead.
        features: prefix of the feature file, or a path (default: feats_).
        conf: see hloc --help.
        max_kps: keypoints per image; 0 keeps all, and the exact points of queries.
        features_ref: feature files with keypoints that stay as they are.
        weights: bundled, official or a file (default: bundled if there are, or official).
        executor: which processes match.
        overwrite: start afresh.

    Returns:
        The feature file and the match file; none where other shards have to be matched yet.

    Raises:
        InputError: there is no such conf, or a file or folder is not given or not there.
    """
    ours = our_conf(conf)
    if isinstance(ours, SparseConf):
        raise InputError(f"{conf} matches features: run hloc match_features")
    feature_path, match_path = _dense_files(ours, conf, Path(pairs), features, export_dir, matches)
    if ours is None:
        options = {"matches": match_path, "features": feature_path, "overwrite": overwrite}
        options |= {"max_kps": max_kps or None, "features_ref": list(features_ref)}
        match_path.parent.mkdir(parents=True, exist_ok=True)
        run_hloc("match_dense", conf, Path(pairs), Path(image_dir), **options)
        return feature_path, match_path
    from sfm_matchers.hloc.steps import engine

    is_whole = engine.match_dense(
        ours,
        Path(pairs),
        Path(image_dir),
        feature_path,
        match_path,
        weights,
        executor,
        max_kps=max_kps or None,
        features_ref=features_ref,
        overwrite=overwrite,
    )
    return (feature_path, match_path) if is_whole else ()


def _dense_files(
    ours: DetectorFreeConf | None,
    conf: str,
    pairs: Path,
    features: str | Path | None,
    export_dir: str | Path | None,
    matches: str | Path | None,
) -> tuple[Path, Path]:
    """The feature file and the match file."""
    output = ours.output if ours else conf_of_hloc("match_dense", conf)["output"]
    feature_path = Path(features or "feats_")
    if feature_path.suffix not in (".h5", ".hdf5"):
        feature_path = _folder(export_dir) / f"{features or 'feats_'}{output}.h5"
    return feature_path, Path(matches or _folder(export_dir) / f"{output}_{pairs.stem}.h5")


def _folder(export_dir: str | Path | None) -> Path:
    if export_dir is None:
        raise InputError("give --export_dir, or the paths of the files")
    return Path(export_dir)
