"""A folder of photos to a COLMAP model.

    python -m pipelines.sfm --image_dir PHOTOS --outputs OUT --matcher sift

Every step leaves a file in OUT, in hloc's layout; a second run does only what is missing or has
changed:

    photos.json                   which photos can be decoded, and a hash of their content
    pairs-*.txt                   pairs of photos to match
    feats-*.h5                    keypoints (and descriptors)
    matches-*.h5                  matches between keypoints
    correspondences-*.h5          detector-free matches before they were turned into keypoints
    database.db                   COLMAP database with verified matches
    sparse/0, sparse/1, ...       COLMAP models, the largest first
    georeferenced                 the largest one in metres, where its place is known
    report.html, *.png            what came out, to look at
    exports.json, ...             what --export adds for other tools
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pycolmap

from pipelines.camera_models import choose_for_models, describe_choices, describe_covariances
from pipelines.georeferencing import (
    EXIF,
    POLICIES,
    announce_matching,
    choose_pairs,
    georeference_models,
    read_places,
)
from pipelines.notes import read_memory, write_memory
from pipelines.options import add_matching_options, take_defaults
from pipelines.steps import (
    CheckedPhoto,
    MatchingJob,
    choose_matching,
    describe_with_vlad,
    run_command,
    start_job,
)
from sfm_matchers import revisions
from sfm_matchers.cameras import CAMERA_MODES, CameraGroups, group_photos, read_photo_header
from sfm_matchers.confs import SparseConf
from sfm_matchers.diagnosis import Explanation, explain, listed, poor_photos, read_match_graph
from sfm_matchers.errors import InputError
from sfm_matchers.exports import check_place, export_model, parse_formats, remove_exports
from sfm_matchers.files import remove_left_behind, temporary_beside
from sfm_matchers.images import REPORT_PICTURES, is_output, looks_like_panorama
from sfm_matchers.intrinsics import find_camera, read_cameras
from sfm_matchers.joined_features import join_features, join_matches
from sfm_matchers.mapping import (
    MAPPERS,
    CameraOptions,
    build_database,
    check_mapper,
    reconstruct,
)
from sfm_matchers.mapping_new.camera_models import CameraChoice
from sfm_matchers.mapping_new.tracks import lengthen_tracks
from sfm_matchers.models import read_model, write_model
from sfm_matchers.pairs import (
    exhaustive_pairs,
    pairs_from_file,
    retrieval_pairs,
    sequential_pairs,
)
from sfm_matchers.report import write_report
from sfm_matchers.shared_cameras import (
    OwnCameras,
    listed_focal_lengths,
    median_error,
    regrouped,
    try_own_cameras,
)
from sfm_matchers.storage import (
    Pair,
    file_fingerprint,
    fingerprint,
    folder_written_whole,
    mean_layers_run,
    one_at_a_time,
    open_h5,
    read_keypoints,
    read_pairs,
    unique_pairs,
    write_pairs,
)

logger = logging.getLogger("sfm_matchers.sfm")

PANORAMIC_MODEL = "EQUIRECTANGULAR"

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


@dataclass(frozen=True)
class _Build:
    """Database and models of matched photos; those that are there already are taken."""

    options: SfmOptions
    job: MatchingJob
    camera_options: CameraOptions
    fixed: set[str]
    pairs: Sequence[Pair]
    feature_path: Path
    match_path: Path

    def source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what a database is made of."""
        return fingerprint(
            revisions.DATABASE,
            self.pairs,
            file_fingerprint(self.feature_path),
            file_fingerprint(self.match_path),
            cameras.groups,
            self.options.camera_model,
            self.options.camera_params,
            self.job.conf.min_inlier_ratio,
            *([asdict(camera) for camera in self.camera_options.given]),
        )

    def model_source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what the mapper's models are made of."""
        return fingerprint(
            revisions.MODEL, self.source(cameras), self.options.mapper, self.options.no_refine
        )

    def finished_source(self, cameras: CameraGroups) -> str:
        """Return the fingerprint of what finished models are made of."""
        return fingerprint(
            self.model_source(cameras),
            revisions.CAMERA_MODELS,
            revisions.LONGER_TRACKS,
            self.options.no_longer_tracks,
        )

    def __call__(
        self, cameras: CameraGroups, folder: Path | None = None
    ) -> list[pycolmap.Reconstruction]:
        """Return the models, made in the outputs, or afresh in a folder of their own."""
        steps = self.job.steps
        database_path = (folder or self.job.outputs) / "database.db"
        model_dir = (folder or self.job.outputs) / "sparse"
        source = self.source(cameras)
        model_source = self.model_source(cameras)

        def database() -> None:
            if folder is None and steps.is_done("database.db", source):
                return
            build_database(
                database_path,
                self.job.image_dir,
                cameras,
                self.camera_options,
                self.pairs,
                self.feature_path,
                self.match_path,
                min_inlier_ratio=self.job.conf.min_inlier_ratio,
            )
            if folder is None:
                steps.set_done("database.db", source, database_path)

        def mapping() -> list[pycolmap.Reconstruction]:
            if folder is None and (
                steps.is_done("mapped", model_source)
                or steps.is_done("sparse", self.finished_source(cameras))
            ):
                return [read_model(path) for path in _model_dirs(model_dir)]
            models = reconstruct(
                database_path,
                self.job.image_dir,
                model_dir,
                self.options.mapper,
                fixed_intrinsics=self.fixed,
                num_threads=self.options.mapper_threads,
                robust=not self.options.no_refine,
            )
            if folder is None:
                steps.set_done("mapped", model_source, model_dir)
            return models

        steps.timed("verification", database)
        return cast(list[pycolmap.Reconstruction], steps.timed("mapping", mapping))

    def take(self, cameras: CameraGroups, folder: Path) -> None:
        """Put the database and the models that were made in a folder into the outputs."""
        steps, names = self.job.steps, ("database.db", "sparse")
        targets = [self.job.outputs / name for name in names]
        steps.forget(*names, "mapped")
        for name, target in zip(names, targets, strict=True):
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(folder / name, target)
        steps.set_done(names[0], self.source(cameras), targets[0])
        steps.set_done("mapped", self.model_source(cameras), targets[1])

    def finish(
        self,
        cameras: CameraGroups,
        models: Sequence[pycolmap.Reconstruction],
        known: Collection[str],
    ) -> tuple[list[pycolmap.Reconstruction], list[CameraChoice]]:
        """Make the mapper's models better: camera models by evidence, points in more photos.

        Args:
            cameras: which photos share one.
            models: as they lie in the outputs; the better ones take their place.
            known: photos whose cameras are given.

        Returns:
            The models, and the camera models of the first one.
        """
        steps, outputs = self.job.steps, self.job.outputs
        model_dir, memory_path = outputs / "sparse", outputs / "camera_models.json"
        source = self.finished_source(cameras)
        if steps.is_done("sparse", source):
            return list(models), [CameraChoice(**one) for one in read_memory(memory_path)["first"]]
        better, choices = list(models), []
        refines = not self.options.no_refine
        if refines and self.options.camera_model == AUTO and len(known) < len(self.job.photos):
            choose = partial(
                choose_for_models,
                models,
                known,
                outputs / "database.db",
                self.options.mapper_threads,
            )
            better, choices = steps.timed("camera models", choose)
        if refines and not self.options.no_longer_tracks:
            better = steps.timed("longer tracks", partial(self._lengthened, better))
        steps.forget("mapped")
        if any(new is not old for new, old in zip(better, models, strict=True)):
            with folder_written_whole(model_dir) as temporary:
                for index, model in enumerate(better):
                    write_model(model, temporary / str(index))
        write_memory(memory_path, {"first": [asdict(one) for one in choices]})
        steps.set_done("sparse", source, model_dir, memory_path)
        return better, choices

    def _lengthened(
        self, models: Sequence[pycolmap.Reconstruction]
    ) -> list[pycolmap.Reconstruction]:
        longer = []
        for model in models:
            images = [model.images[i] for i in model.reg_image_ids()]
            fixed = {image.camera_id for image in images if image.name in self.fixed}
            image_dir, mask_dir = self.job.image_dir, self.job.mask_dir
            new, _ = lengthen_tracks(model, image_dir, mask_dir=mask_dir, fixed_cameras=fixed)
            longer.append(new)
        return longer


MAX_CAMERA_TRIALS = 3
SAFER_CAMERAS = "try --camera_mode per_image, or per_folder with a folder for each camera"


def _build_and_check_cameras(
    build: _Build, cameras: CameraGroups, guessed: set[str]
) -> tuple[CameraGroups, list[pycolmap.Reconstruction]]:
    """Make the models, and make them again with other cameras if they contradict the first ones.

    Args:
        build: makes them.
        cameras: which photos share one.
        guessed: photos of which only their size says so.

    Returns:
        The cameras and the models that agree best.
    """
    memory_path = build.job.outputs / "cameras.json"
    first_source = fingerprint(revisions.CAMERAS, build.model_source(cameras))
    memory = read_memory(memory_path)
    if memory.get("source") == first_source:
        cameras = CameraGroups(memory["groups"], memory["reason"])
        logger.info("Cameras: %s", cameras.reason)
        return cameras, build(cameras)
    models = build(cameras)
    by_size = cameras.groups
    shared = {name for group in by_size if len(group) > 1 for name in group} & guessed
    first_error = median_error(models[0], shared) if models else math.inf
    for _ in range(MAX_CAMERA_TRIALS if shared else 0):
        if not models or not shared.intersection(image.name for image in models[0].images.values()):
            break
        own = build.job.steps.timed("cameras", partial(try_own_cameras, models[0], shared))
        groups = regrouped(by_size, own.focal_lengths)
        if not own.contradicts and len(groups) >= len(cameras.groups):
            break
        others = _with_other_cameras(build, groups, models[0], own, first_error)
        if others is None:
            if own.contradicts:
                cameras = _doubtful(cameras, own)
            break
        cameras, models = others
    remembered = {"source": first_source, "groups": cameras.groups, "reason": cameras.reason}
    write_memory(memory_path, remembered)
    return cameras, models


def _with_other_cameras(
    build: _Build,
    groups: list[list[str]],
    model: pycolmap.Reconstruction,
    own: OwnCameras,
    first_error: float,
) -> tuple[CameraGroups, list[pycolmap.Reconstruction]] | None:
    """Make the models again with other cameras; None if they are not better than this one.

    `first_error` is the median reprojection error with one camera per size.
    """
    folder = temporary_beside(build.job.outputs / "cameras")
    folder.mkdir()
    try:
        models = build(CameraGroups(groups), folder)
        error = median_error(models[0], own.focal_lengths) if models else math.inf
        # Fewer cameras than before have less freedom.
        limit = own.shared_error if own.contradicts else 1.1 * own.shared_error
        if not error < limit or models[0].num_reg_images() < model.num_reg_images():
            return None
        focal_lengths = {
            image.name: models[0].cameras[image.camera_id].mean_focal_length()
            for image in models[0].images.values()
            if image.name in own.focal_lengths
        }
        reason = (
            f"{len(focal_lengths)} photos without EXIF are of one size, but not of one camera, as "
            f"the reprojection errors tell (median {error:.2f} px now, {first_error:.2f} px "
            f"before): {len(groups)} camera(s), of focal lengths "
            f"{listed_focal_lengths(groups, focal_lengths)}"
        )
        if any(len(group) == 1 for group in groups):
            reason += f"; this is not certain: {SAFER_CAMERAS}"
        cameras = CameraGroups(groups, reason)
        logger.warning("Cameras: %s", reason)
        build.take(cameras, folder)
        return cameras, models
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _doubtful(cameras: CameraGroups, own: OwnCameras) -> CameraGroups:
    """Say that the photos may be of other cameras."""
    warning = (
        f"the median reprojection error is {own.shared_error:.2f} px, and {own.own_error:.2f} px "
        "with a camera for each photo: they may be of several cameras, and the model wrong: "
        f"{SAFER_CAMERAS}"
    )
    logger.warning("Cameras: %s", warning)
    return CameraGroups(cameras.groups, f"{cameras.reason}; {warning}")


def _match_again(build: _Build, cameras: CameraGroups, label: str) -> tuple[_Build, str]:
    """Match the photos that the first matcher leaves out of its model with a stronger one.

    Returns:
        What builds the models of the matches of both, and what was done, for the summary.
    """
    job, steps = build.job, build.job.steps
    first = (build.feature_path, build.match_path)
    again_path = job.outputs / f"{label}-again.txt"
    source = build.model_source(cameras)
    if not steps.is_done(again_path.name, source):
        with open_h5(first[0]) as features:  # without keypoints a photo is blank
            names = {name for pair in build.pairs for name in pair}
            usable = {name for name in names if len(read_keypoints(features, name))}
        pairs = [pair for pair in build.pairs if usable.issuperset(pair)]
        write_pairs(again_path, pairs_across_models(build(cameras), pairs))
        steps.set_done(again_path.name, source, again_path)
    again = read_pairs(again_path, job.photos)
    if not again:
        return build, f"{AUTO}: {AUTO_MATCHERS[0]}"
    logger.info(
        "%s leaves photos out of its model: %s matches %d pairs", *AUTO_MATCHERS, len(again)
    )
    matching = choose_matching(replace(build.options, matcher=AUTO_MATCHERS[1]))
    second = replace(job, matching=matching).match(again, again_path.stem)
    both = (job.outputs / "feats-auto.h5", job.outputs / f"matches-auto_{label}.h5")
    source = fingerprint(revisions.JOINED, *map(file_fingerprint, (*first, *second)))
    if not steps.is_done(both[1].name, source):
        join_features(first[0], second[0], both[0])
        join_matches(build.pairs, first, second, both[1])
        steps.set_done(both[1].name, source, *both)
    described = f"{AUTO}: {AUTO_MATCHERS[0]}, then {AUTO_MATCHERS[1]} for {len(again)} pairs"
    if (layers := mean_layers_run(second[1], again)) is not None:
        described += f" ({layers:.1f} layers each)"
    return replace(build, feature_path=both[0], match_path=both[1]), described


def pairs_across_models(
    models: Sequence[pycolmap.Reconstruction], pairs: Iterable[Pair]
) -> list[Pair]:
    """Return the pairs that are not of two photos of one model."""
    model_of: dict[str, int] = {}
    for number, model in enumerate(models):
        for image_id in model.reg_image_ids():
            model_of.setdefault(model.image(image_id).name, number)
    return [
        (name0, name1)
        for name0, name1 in pairs
        if name0 not in model_of or model_of[name0] != model_of.get(name1)
    ]


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


def make_pairs(options: SfmOptions, job: MatchingJob) -> tuple[Path, list[Pair]]:
    """Choose the pairs of photos to match and write them to ``pairs-*.txt``."""
    names, outputs = sorted(job.photos), job.outputs
    label = str(options.pairs)
    if options.pairs in POLICIES:
        pairs, label = choose_pairs(label, job, options.georeference, options.num_matched)
    elif options.pairs == "exhaustive":
        pairs = exhaustive_pairs(names)
    elif options.pairs == "sequential":
        pairs = sequential_pairs(names, options.num_matched)
        label = f"sequential{options.num_matched}"
    elif options.pairs == "retrieval":
        pairs = retrieval_pairs(names, describe_with_vlad(job, names), options.num_matched)
        label = f"vlad{options.num_matched}"
    else:
        pairs, unknown = pairs_from_file(Path(options.pairs), names)
        label = Path(options.pairs).stem.removeprefix("pairs-")
        for name0, name1 in unknown[:5]:
            logger.warning("left out: the pair %s %s names a photo that is not there", name0, name1)
        if len(unknown) > 5:
            logger.warning("left out: %d more such pairs", len(unknown) - 5)
    pairs = unique_pairs(pairs)
    path = outputs / f"pairs-{label}.txt"
    write_pairs(path, pairs)
    return path, pairs


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


def _model_dirs(model_dir: Path) -> list[Path]:
    numbered = (path for path in model_dir.iterdir() if path.name.isdecimal())
    return sorted(numbered, key=lambda path: int(path.name))


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


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.sfm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--image_dir", type=Path, required=True, help="folder of photos, searched recursively")
    add("--outputs", type=Path, required=True, help="folder for all results; made if missing")
    first, second = AUTO_MATCHERS
    add_matching_options(
        add, shards=True, auto=f"{first}, then {second} for the photos that it leaves out"
    )
    add(
        "--pairs",
        metavar="auto|exhaustive|sequential|retrieval|spatial|FILE",
        help="which photos to match: all with all where that is minutes, else each with the most "
        "similar ones, the next ones by time or name and the nearest ones by GPS; all with all; "
        "each with the next ones by name; with the most similar ones; with the nearest ones; or a "
        "text file with two names a line (default: %(default)s)",
    )
    add(
        "--num_matched",
        type=int,
        help="photos matched to each photo by all but exhaustive (default: %(default)s)",
    )
    add("--mapper", choices=MAPPERS, help="default: %(default)s")
    add(
        "--mapper_threads",
        type=int,
        help="threads of the mapper; 1 gives the same model every time, more (-1: all cores) are "
        "faster for hundreds of photos (default: %(default)s)",
    )
    add(
        "--camera_mode",
        choices=CAMERA_MODES,
        help="which photos share a camera; auto decides from EXIF and sizes (default: %(default)s)",
    )
    add(
        "--camera_model",
        help="COLMAP's name, such as OPENCV_FISHEYE for fisheye lenses or EQUIRECTANGULAR for "
        f"panoramas of 360 degrees; auto maps with {MAPPED_WITH} and then chooses by the error of "
        "held-out observations (default: %(default)s)",
    )
    add(
        "--camera_params",
        help="known intrinsics in COLMAP's order, comma-separated, in pixels; they are kept as "
        "they are (default: from EXIF, and refined)",
    )
    add(
        "--cameras",
        type=Path,
        metavar="FILE",
        help="intrinsics of photos by folder or name: lines 'PATTERN MODEL PARAMS [fixed|start]', "
        "such as 'left/* OPENCV 900,900,640,360,0,0,0,0 fixed'; start: refined from there",
    )
    add(
        "--mask_dir",
        type=Path,
        help="masks, whose black pixels are ignored: a folder with one for each photo, called "
        "a.jpg.png or a.png for a.jpg, or a file, the mask of every photo. Transparent parts of "
        "photos are ignored without one",
    )
    add(
        "--georeference",
        metavar="none|exif|FILE",
        help="a model in metres, east, north and up, beside the other, in OUTPUTS/georeferenced: "
        "by GPS in EXIF where enough photos have it; by a table of positions (name,lat,lon,alt or "
        "name,x,y,z); or by ground control points as in OpenDroneMap's gcp_list.txt "
        "(default: %(default)s)",
    )
    add(
        "--drop_raw_matches",
        action="store_true",
        help="delete correspondences-*.h5 of a detector-free matcher, 30 kB a pair, when keypoints "
        "are made of them; if pairs are added later, all are matched again",
    )
    add(
        "--export",
        metavar="FORMAT,...",
        help="also write the model for other tools into OUTPUTS: nerfstudio, gsplat, undistorted "
        "(for Inria's 3DGS), ply",
    )
    add(
        "--no_longer_tracks",
        action="store_true",
        help="keep the tracks that matching gave; otherwise each point is looked for in all photos "
        "that should show it, by least squares matching, and the model is adjusted again",
    )
    add(
        "--no_refine",
        action="store_true",
        help="leave the mapper's model as it is: no robust adjustment, no choice of camera models, "
        "no longer tracks",
    )
    add("--overwrite", action="store_true", help="delete the results in OUTPUTS and start afresh")
    take_defaults(parser, SfmOptions)
    return parser


def print_summary(result: SfmResult) -> None:
    """Print the summary, one fact a line."""
    lines = {key: value for key, value in result.summary.items() if not isinstance(value, dict)}
    lines |= result.summary["settings"]
    lines |= {f"seconds, {name}": value for name, value in result.summary["seconds"].items()}
    exports = result.summary.get("exports", {})
    lines |= {f"export, {name}": value for name, value in exports.items()}
    lines["report"] = result.report if result.report.exists() else "none, see above"
    width = max(map(len, lines))
    print("\n".join(f"{key:<{width}}  {value}" for key, value in lines.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if a model came out, 1 if none did, 2 for bad input."""
    options = SfmOptions(**vars(build_parser().parse_args(arguments)))

    def job() -> int:
        nonlocal options
        current, options = options, replace(options, overwrite=False)  # delete once only
        if current.shard is not None:
            run_shard(current)
            print(f"shard {current.shard} is done; after all others, run with --merge")
            return 0
        result = run(current)
        print_summary(result)
        return 0 if result.models else 1

    return run_command(Path(options.outputs), job, options.shard)


if __name__ == "__main__":
    sys.exit(main())
