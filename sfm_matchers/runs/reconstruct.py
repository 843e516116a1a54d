"""A folder of photos to a COLMAP model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.exports import check_place, export_model, outdated_formats, parse_formats
from sfm_matchers.files.hdf5 import mean_layers_run
from sfm_matchers.files.links import real_path
from sfm_matchers.mapping.camera_models import CameraChoice
from sfm_matchers.mapping.mapper import check_mapper
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.folders import is_output
from sfm_matchers.photos.masks import check_mask_dir
from sfm_matchers.reports.reconstruction import write_report
from sfm_matchers.runs.camera_models import describe_choices, describe_covariances
from sfm_matchers.runs.camera_trials import make_and_check_cameras
from sfm_matchers.runs.cameras import know_cameras, read_camera_options
from sfm_matchers.runs.findings import look_into
from sfm_matchers.runs.forecast import announce_matching
from sfm_matchers.runs.frames import check_source, frames_instead_of_video
from sfm_matchers.runs.georeference import (
    check_georeference,
    earth_axes,
    georeference_models,
    read_places,
)
from sfm_matchers.runs.mapping import Build
from sfm_matchers.runs.matcher_auto import match_again
from sfm_matchers.runs.matching import Matching, MatchingJob, choose_matching, start_job
from sfm_matchers.runs.options import (
    AUTO,
    AUTO_MATCHERS,
    MatchOptions,
    SfmOptions,
    check_numbers,
    make_options,
)
from sfm_matchers.runs.pairs import check_policy, make_pairs
from sfm_matchers.runs.results import SfmResult
from sfm_matchers.runs.summary import Settings, summarize
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.sfm")


def reconstruct(image_dir: str | Path, output: str | Path, **options: Any) -> SfmResult:
    """Make a COLMAP model of a folder of photos; what is done already is not done again.

    Args:
        image_dir: the photos, or a video (with the extra ``video``).
        output: folder for all results; see `Workspace` for what lies where.
        options: of `SfmOptions`, such as ``matcher="jamma"``.

    Raises:
        SfmMatchersError: an option or an input cannot be used, or another run works in `output`.

    Example:
        >>> from sfm_matchers import reconstruct
        >>> result = reconstruct("photos", "out", matcher="jamma")  # doctest: +SKIP
        >>> result.model.num_reg_images()  # doctest: +SKIP
        12
    """
    chosen = make_options(SfmOptions, image_dir=image_dir, outputs=output, **options)
    if chosen.shard is not None:
        raise InputError("shard: a part of the matching gives no model; see docs/scale.md")
    with Workspace(output).alone():
        return run(chosen)


def run(options: SfmOptions) -> SfmResult:
    """Reconstruct a folder of photos. No other run may work in the outputs; see `reconstruct`.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    formats, matching = check_options(options)
    if options.overwrite:
        Workspace(options.outputs).clear()
    options = frames_instead_of_video(options)
    job = start_photos(options, matching)
    workspace, image_dir = job.workspace, job.image_dir
    cameras = know_cameras(options, job)
    places = read_places(options.georeference, image_dir, sorted(job.photos))

    pairs, label = make_pairs(options, job, lambda: places)
    announce_matching(job, pairs, label, str(options.pairs), options.num_matched)
    features, matches = job.match(pairs, label)
    build = Build(options, job, cameras.options, cameras.fixed, pairs, features, matches)
    matcher = str(options.matcher)
    if matcher == AUTO:
        build, matcher = match_again(build, cameras.groups, label)

    groups, models = make_and_check_cameras(build, cameras)
    models, choices = build.finish(groups, models, cameras.given)
    details = {}
    if models:
        with workspace.timed("uncertainty", always_works=True):
            details = describe_covariances(models[0], cameras.fixed, choices)
    job.check_photos_unchanged()  # the mapper has looked at them too
    with workspace.timed("georeference"):
        details["georeference"] = georeference_models(job, places, models, cameras.fixed)
    if models and not workspace.has_worked:
        logger.info("Nothing to do: the model is that of an earlier run, whose seconds these are")
    workspace.keep_seconds()

    findings = look_into(build, models, cameras, groups)
    settings = _settings(build, matcher, groups, choices)
    summary = summarize(job, models, findings, details, settings)
    report = write_report(
        workspace.path,
        models[0] if models else None,
        image_dir,
        pairs,
        build.feature_path,
        build.match_path,
        workspace.database,
        summary,
        findings.faults,
        earth_axes(workspace),
    )
    if models and formats:  # the last step: the model is there whatever happens to them
        exports = export_model(workspace.model, image_dir, workspace.path, formats)
        summary["exports"] = {export.format: export.described() for export in exports}
    if models:
        warn_of_outdated_exports(workspace, image_dir)
    return SfmResult(models, summary, report)


def warn_of_outdated_exports(workspace: Workspace, image_dir: Path) -> None:
    """Say which exports of earlier runs are not of the model as it is now."""
    if outdated := outdated_formats(workspace.model, image_dir, workspace.path):
        formats = ",".join(outdated)
        logger.warning(
            "exports of an earlier model, or other photos: %s: --export %s makes them of this one",
            formats.replace(",", ", "),
            formats,
        )


def _settings(
    build: Build, matcher: str, groups: CameraGroups, choices: Sequence[CameraChoice]
) -> Settings:
    """What the summary says of how the run worked."""
    options = build.options
    return Settings(
        matcher=matcher + _layers(build),
        weights=str(options.weights),
        pairs=f"{len(build.pairs)} ({options.pairs})",
        cameras=groups.reason,
        mapper=options.mapper,
        camera_models=describe_choices(choices),
    )


def run_shard(options: SfmOptions) -> None:
    """Match one shard of the pairs; runs for other shards may work at the same time.

    What all shards need is made by the run that comes first; the others wait for it.

    Raises:
        SfmMatchersError: an option or an input cannot be used.
    """
    if options.overwrite:
        raise InputError("--overwrite would delete what other shards have done")
    _, matching = check_options(options)
    workspace = Workspace(options.outputs)
    workspace.path.mkdir(parents=True, exist_ok=True)
    with workspace.one_at_a_time():
        options = frames_instead_of_video(options)
        job = start_photos(options, matching)
        know_cameras(options, job)  # what is wrong with them is said before the matching
        pairs, label = make_pairs(options, job)
        if isinstance(job.conf, SparseConf):
            job.extract(job.conf, {name for pair in pairs for name in pair})
    job.match_share(pairs, label)


def check_options(options: SfmOptions) -> tuple[list[str], Matching]:
    """Look at the options before anything takes time, is made or is deleted.

    Returns:
        The formats to export, and how to match.

    Raises:
        InputError: one cannot be used.
    """
    read_camera_options(options)
    check_inputs(options)
    check_mapper(options.mapper)
    image_dir, workspace = Path(options.image_dir), Workspace(options.outputs)
    formats = list(parse_formats(options.export))
    if formats:
        check_place(formats, image_dir, workspace.path, model_dir=workspace.model, is_run=True)
    first = options
    if options.matcher == AUTO:
        if options.shard is not None or options.merge:
            raise InputError(f"shards need a --matcher other than {AUTO}, which decides on the way")
        # The weights are those of the second one.
        if options.weights != MatchOptions.weights:
            choose_matching(replace(options, matcher=AUTO_MATCHERS[1]))
        first = replace(options, matcher=AUTO_MATCHERS[0], weights=MatchOptions.weights)
    matching = choose_matching(
        first,
        options.shard,
        merge=options.merge,
        detail=options.detail,
    )
    if real_path(workspace.path) == real_path(image_dir) and not is_output(workspace.path):
        for picture in workspace.pictures:
            if picture.exists():
                raise InputError(
                    f"{picture} would be overwritten by the report: give another folder as "
                    "--outputs, or rename the photo"
                )
    return formats, matching


def check_inputs(options: MatchOptions) -> None:
    """Look whether what options name is there, before anything takes time, is made or is deleted.

    Raises:
        SfmMatchersError: it is not, or a video needs an extra.
    """
    check_numbers(options)
    check_source(options)
    check_policy(options.pairs)
    check_georeference(options.georeference)
    if options.mask_dir is not None:
        check_mask_dir(options.mask_dir)


def start_photos(options: MatchOptions, matching: Matching) -> MatchingJob:
    """Check the photos.

    Raises:
        InputError: there are fewer than two, or they or their masks cannot be used.
    """
    job = start_job(
        matching,
        Path(options.image_dir),
        Workspace(options.outputs),
        mask_dir=None if options.mask_dir is None else Path(options.mask_dir),
        drop_raw_matches=options.drop_raw_matches,
    )
    if len(job.photos) < 2:
        raise InputError(
            f"{options.image_dir} holds {len(job.photos)} photo(s) that can be decoded; a model "
            "needs two at least, of one scene"
        )
    return job


def _layers(build: Build) -> str:
    """How many layers a network that may stop early has run, in the mean."""
    layers = mean_layers_run(build.match_path, build.pairs)
    return "" if layers is None else f" ({layers:.1f} layers each)"
