"""A map triangulated from known poses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfm_matchers.errors import InputError, listed
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.mapping.denied_poses import find_denied_poses
from sfm_matchers.mapping.models import read_model
from sfm_matchers.mapping.triangulation import triangulate
from sfm_matchers.runs.matching import MatchingJob

logger = logging.getLogger("sfm_matchers.pipelines")

MAX_DENIED = 1 / 4  # of a map's photos


def triangulated_map(
    job: MatchingJob, reference: pycolmap.Reconstruction, pairs: Sequence[Pair], label: str
) -> tuple[pycolmap.Reconstruction, Path]:
    """Match pairs of photos of a map and triangulate into its poses.

    Returns:
        The model, which lies in `Workspace.triangulated`, without the photos whose poses their
        matches deny, and its feature file.

    Raises:
        InputError: no two photos can be matched, or the matches deny the poses of too many.
    """
    usable = _photos_of_map(job, reference)
    known = [pair for pair in pairs if usable.issuperset(pair)]
    if not known:
        raise InputError(
            "no two photos of the map can be matched: they are missing, are not those its model "
            "was made of, or have nothing in common there; the messages above tell"
        )
    feature_path, match_path = job.match(known, label)
    # The matches carry the fingerprints of their features. The file of features may have those of
    # queries too, which do not matter here.
    views = sorted(
        (image.name, image.cam_from_world().matrix().tolist(), image.camera.params.tolist())
        for image in reference.images.values()
        if image.has_pose
    )
    made_from = (content_hash(match_path), views)
    note = job.workspace.denied_poses
    source = fingerprint(revisions.DENIED_POSES, known, *made_from)
    if (memory := read_memory(note)).get("source") != source:
        names = find_denied_poses(reference, known, feature_path, match_path)
        memory = {"source": source, "names": names}
        write_memory(note, memory)
    denied = _left_out(memory["names"], known)
    known = [pair for pair in known if denied.isdisjoint(pair)]
    model_dir = job.workspace.triangulated(job.conf)
    source = fingerprint(revisions.TRIANGULATION, known, *made_from)
    if not job.workspace.is_done(model_dir.name, source):
        with job.workspace.timed("triangulation"):
            triangulate(reference, model_dir, job.image_dir, known, feature_path, match_path)
        job.workspace.set_done(model_dir.name, source, model_dir)
    # As a later run reads it: in memory images and points may lie in another order.
    model = read_model(model_dir)
    for image in list(model.images.values()):
        if image.name in denied and image.has_pose:
            model.deregister_frame(image.frame_id)
    return model, feature_path


def _left_out(denied: Sequence[str], pairs: Sequence[Pair]) -> set[str]:
    """Name the photos of the map's pairs whose poses their matches deny.

    Raises:
        InputError: they are so many that nothing says which part of the map is right.
    """
    if not denied:
        return set()
    total = len({name for pair in pairs for name in pair})
    if len(denied) > MAX_DENIED * total:
        raise InputError(
            f"the poses and cameras of the map contradict the matches of {len(denied)} of its "
            f"{total} photos ({listed(denied)}): give the photos that its model was made of, each "
            "under its name, not cropped or turned since, or mend its poses (world to camera)"
        )
    logger.warning(
        "left out of the map: %s, as the matches with its other photos contradict the poses that "
        "it has of them: give the photos that its model was made of, each under its name (or they "
        "show sides of the place that look alike)",
        listed(denied),
    )
    return set(denied)


def _photos_of_map(job: MatchingJob, reference: pycolmap.Reconstruction) -> set[str]:
    """Names of the map's photos that can be decoded and have the size of their camera."""
    names = set()
    for image in reference.images.values():
        if image.name not in job.photos:
            continue
        width, height = job.photos[image.name].size
        camera = image.camera
        if (width, height) == (camera.width, camera.height):
            names.add(image.name)
        else:
            logger.warning(
                "left out: %s has %d x %d pixels, its camera in the map %d x %d: give the photos "
                "that the map was made of",
                image.name,
                width,
                height,
                camera.width,
                camera.height,
            )
    return names
