"""A folder of photos to a COLMAP model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pycolmap

from sfm_matchers.choices import PANORAMIC_MODEL
from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.exports import check_place, export_model, parse_formats, remove_exports
from sfm_matchers.files.hdf5 import mean_layers_run
from sfm_matchers.files.locks import one_at_a_time
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.replacing import remove_left_behind
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.diagnosis import (
    Explanation,
    explain,
    listed,
    poor_photos,
    read_match_graph,
)
from sfm_matchers.mapping.mapper import check_mapper
from sfm_matchers.photos.cameras import group_photos, read_photo_header
from sfm_matchers.photos.folders import REPORT_PICTURES, is_output
from sfm_matchers.photos.images import looks_like_panorama
from sfm_matchers.photos.intrinsics import find_camera, read_cameras
from sfm_matchers.reports.reconstruction import write_report
from sfm_matchers.runs.camera_models import (
    describe_choices,
    describe_covariances,
)
from sfm_matchers.runs.forecast import announce_matching
from sfm_matchers.runs.georeference import georeference_models, read_places
from sfm_matchers.runs.mapping import SAFER_CAMERAS, _Build, _build_and_check_cameras
from sfm_matchers.runs.matcher_auto import _match_again
from sfm_matchers.runs.matching import MatchingJob, choose_matching, start_job
from sfm_matchers.runs.options import AUTO, AUTO_MATCHERS, MAPPED_WITH, SfmOptions
from sfm_matchers.runs.pairs import make_pairs
from sfm_matchers.runs.photos import CheckedPhoto
from sfm_matchers.runs.verdict import judge_model

logger = logging.getLogger("sfm_matchers.sfm")


@dataclass
class SfmResult:
    """What came out.

    Attributes:
        models: COLMAP models, the largest first; empty if there is none.
        summary: what the command line prints, by line.
        report: the HTML report.
    """

    models: list[pycolmap.Reconstruction]
    summary: dict[str, Any]
    report: Path


def run(options: SfmOptions) -> SfmResult:
    """Reconstruct a folder of photos.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    camera_options = _camera_options(options)
    check_mapper(options.mapper)
    formats = parse_formats(options.export)
    if formats:
        _check_exports(formats, Path(options.image_dir), Path(options.outputs))
    if options.overwrite:
        _remove_outputs(Path(options.outputs))
    job = _prepare(options)
    image_dir, outputs, steps, photos = job.image_dir, job.outputs, job.steps, job.photos
    fixed = {name for name in photos if camera_options.of(name).is_fixed}
    check_mapper(options.mapper, some_fixed=0 < len(fixed) < len(photos))
    others = [name for name in photos if find_camera(camera_options.given, name) is None]
    panoramas = point_out_panoramas(options.camera_model, image_dir, others)
    places = read_places(options.georeference, image_dir, sorted(photos))
    pairs_path, pairs = make_pairs(options, job)
    announce_matching(job, pairs, pairs_path.stem, str(options.pairs), options.num_matched)
    headers = {name: read_photo_header(image_dir / name) for name in photos}
    cameras = group_photos(headers, options.camera_mode)
    sizes = {name: photo.size for name, photo in photos.items()}
    cameras = camera_options.split(cameras, sizes, options.camera_mode)
    logger.info("Cameras: %s", cameras.reason)
    matched, matcher = job.match(pairs, pairs_path.stem), str(options.matcher)
    build = _Build(options, job, camera_options, fixed, pairs, *matched)
    if matcher == AUTO:
        build, matcher = _match_again(build, cameras, pairs_path.stem)
    guessed = set()
    # Panoramas have no focal length to tell cameras apart by.
    told_by_size = options.camera_mode == "auto" and not options.camera_params
    if told_by_size and options.camera_model != PANORAMIC_MODEL:
        guessed = {name for name in others if not headers[name].has_exif_camera}
    cameras, models = _build_and_check_cameras(build, cameras, guessed)
    known = set(photos) if options.camera_params else set(photos).difference(others)
    models, choices = build.finish(cameras, models, known)
    sure = {}
    if models:
        sure = steps.timed("uncertainty", partial(describe_covariances, models[0], fixed, choices))
    job.check_photos_unchanged()  # the mapper has looked at them too
    feature_path, match_path = build.feature_path, build.match_path
    database_path = outputs / "database.db"
    graph = read_match_graph(database_path, pairs, models[0] if models else None)
    faults = poor_photos(graph, image_dir, job.mask_dir)
    hint = panoramas
    is_guess = any(len(group) > 1 and guessed.issuperset(group) for group in cameras.groups)
    if models and is_guess and not hint:
        hint = "photos of several cameras need --camera_mode per_image or per_folder"
    explanation = explain(graph, models, faults, hint)
    _log(explanation, has_model=bool(models))
    place = steps.timed("georeference", lambda: georeference_models(job, places, models, fixed))
    summary = summarize(
        options, photos, pairs, cameras.reason, models, explanation.reason, steps.seconds
    )
    unsure = f"cameras: {SAFER_CAMERAS}" if SAFER_CAMERAS in cameras.reason else ""
    verdict = judge_model(
        models,
        sorted(photos),
        pairs,
        matcher=str(options.matcher),
        device=options.device,
        faults=faults,
        doubt=panoramas or unsure,
    )
    summary |= {"verdict": verdict.text, "verdict_level": verdict.level}
    summary |= sure
    if place:
        summary["georeference"] = place
    summary["settings"]["matcher"] = matcher
    if described := describe_choices(choices):
        summary["settings"]["camera models"] = described
    if (layers := mean_layers_run(match_path, pairs)) is not None:
        summary["settings"]["matcher"] += f" ({layers:.1f} layers each)"
    report = write_report(
        outputs,
        models[0] if models else None,
        image_dir,
        pairs,
        feature_path,
        match_path,
        database_path,
        summary,
        faults,
    )
    if models and formats:  # the last step: the model is there whatever happens to them
        model_dir = outputs / "sparse" / "0"
        exports = export_model(model_dir, image_dir, outputs, formats)
        summary["exports"] = {export.format: export.described() for export in exports}
    return SfmResult(models, summary, report)


def run_shard(options: SfmOptions) -> None:
    """Match one shard of the pairs; runs for other shards may work at the same time.

    What all shards need is made by the run that comes first; the others wait for it.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    if options.overwrite:
        raise InputError("--overwrite would delete what other shards have done")
    outputs = Path(options.outputs)
    outputs.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(outputs):
        job = _prepare(options)
        pairs_path, pairs = make_pairs(options, job)
        if isinstance(job.conf, SparseConf):
            job.extract(job.conf.features, {name for pair in pairs for name in pair})
    job.match_share(pairs, pairs_path.stem)


def _prepare(options: SfmOptions) -> MatchingJob:
    """Check the photos and the options of the matching and of the cameras.

    What is wrong with them is said now, not after an hour of matching.
    """
    camera_options = _camera_options(options)
    image_dir, outputs = Path(options.image_dir), Path(options.outputs)
    if options.matcher == AUTO:
        if options.shard is not None or options.merge:
            raise InputError(f"shards need a --matcher other than {AUTO}, which decides on the way")
        options = replace(options, matcher=AUTO_MATCHERS[0])
    matching = choose_matching(options, options.shard, merge=options.merge)
    _keep_photos(image_dir, outputs)
    job = start_job(
        matching,
        image_dir,
        outputs,
        mask_dir=None if options.mask_dir is None else Path(options.mask_dir),
        drop_raw_matches=options.drop_raw_matches,
    )
    if len(job.photos) < 2:
        raise InputError(
            f"{image_dir} holds {len(job.photos)} photo(s) that can be decoded; a model needs two "
            "at least, of one scene"
        )
    camera_options.check({name: photo.size for name, photo in job.photos.items()})
    return job


def _camera_options(options: SfmOptions) -> CameraOptions:
    """What is known of the cameras."""
    given = read_cameras(options.cameras) if options.cameras else []
    model = MAPPED_WITH if options.camera_model == AUTO else options.camera_model
    cameras = CameraOptions(model, options.camera_params, given)
    cameras.reader_options()
    return cameras


def point_out_panoramas(camera_model: str, image_dir: Path, photos: Iterable[str]) -> str:
    """Say so if photos look like panoramas and the camera model is another one, or the reverse.

    Returns:
        What was said, as it may be the reason if no model comes out; "" if nothing.
    """
    names = sorted(photos)
    spheres = [name for name in names if looks_like_panorama(image_dir / name)]
    others = sorted(set(names).difference(spheres))
    said = ""
    if spheres and camera_model != PANORAMIC_MODEL:
        said = (
            f"{len(spheres)} of {len(names)} photos look like panoramas ({listed(spheres)}): whole "
            f"spheres need --camera_model {PANORAMIC_MODEL}"
        )
    elif others and camera_model == PANORAMIC_MODEL:
        said = (
            f"{len(others)} of {len(names)} photos are not twice as wide as high "
            f"({listed(others)}): --camera_model {PANORAMIC_MODEL} is for whole spheres only"
        )
    if said:
        logger.warning("%s", said)
    return said


def _check_exports(formats: Iterable[str], image_dir: Path, outputs: Path) -> None:
    """Say now, not after the run, if exports cannot go into its outputs."""
    model_dir = outputs / "sparse" / "0"
    check_place(formats, image_dir, outputs, model_dir=model_dir, is_run=True)


def _log(explanation: Explanation, *, has_model: bool) -> None:
    for line in explanation.details:
        logger.warning("%s", line)
    if explanation.reason:
        logger.log(logging.WARNING if has_model else logging.ERROR, "%s", explanation.reason)


def _keep_photos(image_dir: Path, outputs: Path) -> None:
    """Raise InputError if the report would take the place of a photo."""
    if outputs.resolve() != image_dir.resolve() or is_output(outputs):
        return
    for name in REPORT_PICTURES:
        if (outputs / name).exists():
            raise InputError(
                f"{outputs / name} would be overwritten by the report: give another folder as "
                "--outputs, or rename the photo"
            )


def summarize(
    options: SfmOptions,
    photos: Mapping[str, CheckedPhoto],
    pairs: list[Pair],
    camera_reason: str,
    models: list[pycolmap.Reconstruction],
    reason: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return the lines of the printed summary; `reason` as of `diagnosis.Explanation`."""
    summary: dict[str, Any] = {"model": "none"}
    if models:
        model = models[0]
        summary = {
            "model": str(Path(options.outputs) / "sparse" / "0"),
            "registered images": f"{model.num_reg_images()} of {len(photos)}",
            "points": model.num_points3D(),
            "mean track length": round(model.compute_mean_track_length(), 3),
            "mean reprojection error": f"{model.compute_mean_reprojection_error():.3f} px",
        }
        if len(models) > 1:
            sizes = ", ".join(str(model.num_reg_images()) for model in models[1:])
            summary["further models"] = f"{len(models) - 1}, of {sizes} images"
    if reason:
        summary["reason"] = reason
    summary["settings"] = {
        "matcher": str(options.matcher),
        "weights": str(options.weights),
        "pairs": f"{len(pairs)} ({options.pairs})",
        "cameras": camera_reason,
        "mapper": options.mapper,
    }
    summary["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    return summary


def _remove_outputs(outputs: Path) -> None:
    """Delete what this pipeline writes, and nothing else."""
    remove_exports(outputs)
    pictures = REPORT_PICTURES if is_output(outputs) else ()
    patterns = (
        *pictures,
        "photos.json",
        "steps.json",
        "cameras.json",
        "camera_models.json",
        "pairs-*.txt",
        "feats-*.h5*",
        "global-feats-*.h5*",
        "matches-*.h5*",
        "correspondences-*.h5*",
        "database.db*",
        "sparse",
        "georeferenced",
        "report.html",
    )
    seals = [f".{pattern.rstrip('*')}.sha256" for pattern in patterns if "h5" in pattern]
    remove_left_behind(outputs)
    for pattern in (*patterns, *seals):
        for path in outputs.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
