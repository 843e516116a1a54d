"""A model and its photos to a map that is ready: see `localization.map_folder`."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.files.entries import copy_entries
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.staged import copy_staged
from sfm_matchers.files.text import written_whole
from sfm_matchers.localization import map_folder
from sfm_matchers.localization.map_folder import MapSettings
from sfm_matchers.mapping.models import model_folder, write_model
from sfm_matchers.photos.folders import check_folder
from sfm_matchers.runs.georeference import earth_axes_of
from sfm_matchers.runs.localize import check_map, map_pairs, read_map
from sfm_matchers.runs.maps import triangulated_map
from sfm_matchers.runs.matching import (
    Matching,
    MatchingJob,
    choose_matching,
    matcher_weights,
    start_job,
)
from sfm_matchers.runs.options import MapOptions, check_numbers
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.map")

BUILD = "build"  # below a map that is not finished: what is done already


def build(options: MapOptions) -> MapSettings:
    """Make a map, or complete one; what is there already of the same inputs stays.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    start = time.monotonic()
    matching, conf = check_options(options)
    output, image_dir = Path(options.output), Path(options.images)
    reference = read_map(options.model, image_dir, "")
    pairs, label = map_pairs(reference, options.num_covis)
    work = output / BUILD
    work.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(work)
    earlier = _earlier_map(output)
    if earlier is not None:
        copy_staged(output / map_folder.FEATURES, workspace.features(conf))
    _take_from_run(Path(options.model), workspace, conf, label)
    names = sorted(image.name for image in reference.images.values())
    mask_dir = None if options.mask_dir is None else Path(options.mask_dir)
    job = start_job(matching, image_dir, workspace, names, mask_dir=mask_dir)
    source = _source(job, matching, conf, pairs, reference)
    if earlier is not None and earlier.source == source:
        shutil.rmtree(work)
        logger.info("%s is complete, and of these inputs", output)
        return earlier
    earth = earth_axes_of(options.model)
    settings = _finish(output, job, conf, source, pairs, label, reference, earth)
    steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in workspace.seconds.items())
    logger.info("Built in %.1f s: %s", time.monotonic() - start, steps)
    shutil.rmtree(work)
    return settings


def check_options(options: MapOptions) -> tuple[Matching, SparseConf]:
    """Look whether the inputs are there, before anything takes time or is made.

    Returns:
        How to match, and with which features.

    Raises:
        InputError: an option or an input cannot be used.
    """
    check_numbers(options)
    matching = choose_matching(options)
    conf = matching.conf
    if not isinstance(conf, SparseConf):
        raise InputError(
            f"{conf.where} matches photos, which a map does not have: take a matcher with features "
            "(sift, aliked+mambaglue), or sfm-matchers localize with --map_images"
        )
    output = Path(options.output)
    if (output / "images.bin").exists() or Workspace(output).models.exists():
        raise InputError(f"{output} holds a model: give the map a folder of its own")
    check_map(options.model)
    check_folder(options.images)
    return matching, conf


def _earlier_map(output: Path) -> MapSettings | None:
    """The map that is there; None if there is none, or a damaged one."""
    if not map_folder.is_map(output):
        return None
    try:
        settings = map_folder.read_settings(output)
        map_folder.check(output, settings)
    except InputError as error:
        logger.warning("%s: it is built again now", error)
        return None
    return settings


def _finish(
    output: Path,
    job: MatchingJob,
    conf: SparseConf,
    source: str,
    pairs: list[Pair],
    label: str,
    reference: pycolmap.Reconstruction,
    earth: np.ndarray | None,
) -> MapSettings:
    """Do what is missing, and put the parts in their places, map.json last."""
    known = sorted(job.photos)
    feature_path = job.extract(conf, known)
    logger.info("Triangulating from %d pairs of %d photos", len(pairs), len(known))
    model, _ = triangulated_map(job, reference, pairs, label)
    with job.workspace.timed("retrieval", always_works=True):
        logger.info("Describing %d photos for retrieval", len(known))
        index = map_folder.make_index(known, feature_path)
    job.check_photos_unchanged()
    (output / map_folder.ABOUT).unlink(missing_ok=True)  # no map while its parts are replaced
    write_model(model, output / map_folder.MODEL)
    copy_entries(dict.fromkeys(known, feature_path), output / map_folder.FEATURES)
    map_folder.write_index(output / map_folder.RETRIEVAL, index)
    weights = _keep_weights(output, job.matching.weights)
    settings = MapSettings(
        conf.name,
        map_folder.conf_content(conf),
        weights,
        matcher_weights(job.matching),
        source,
        model.num_reg_images(),
        model.num_points3D(),
        earth=None if earth is None else earth.tolist(),
    )
    map_folder.write_settings(output, settings)
    return map_folder.read_settings(output)


def _keep_weights(output: Path, weights: str) -> str:
    """Copy a checkpoint file into the map; return how the map names its weights."""
    shutil.rmtree(output / map_folder.WEIGHTS, ignore_errors=True)
    if not Path(weights).is_file():
        return weights
    kept = f"{map_folder.WEIGHTS}/{Path(weights).name}"
    with written_whole(output / kept) as temporary:
        shutil.copyfile(weights, temporary)
    return kept


def _source(
    job: MatchingJob,
    matching: Matching,
    conf: SparseConf,
    pairs: list[Pair],
    reference: pycolmap.Reconstruction,
) -> str:
    """Fingerprint of all that a map is made of."""
    views = [
        (image.name, image.cam_from_world().matrix().tolist(), image.camera.params.tolist())
        for image in reference.images.values()
        if image.has_pose
    ]
    return fingerprint(
        map_folder.FORMAT,
        map_folder.conf_content(conf),
        matcher_weights(matching),
        pairs,
        job.fingerprints(sorted(job.photos)),
        sorted(views),
    )


def _take_from_run(model: Path, workspace: Workspace, conf: SparseConf, label: str) -> None:
    """Begin with the features and matches of the run that made the model.

    Those that are not of these photos and settings are made again, see `StagedFile`.
    """
    feature_path = workspace.features(conf)
    folder = model_folder(model)
    for run in dict.fromkeys((model, folder, folder.parent, folder.parent.parent)):
        found = run / feature_path.name
        if not found.is_file():
            continue
        logger.info("Features of %s are taken from %s", conf.name, run)
        copy_staged(found, feature_path)
        matches = sorted(run.glob(f"{conf.output}_*.h5"), key=lambda path: path.stat().st_size)
        if matches:
            copy_staged(matches[-1], workspace.matches(conf, label))
        return
