"""What a run knows of its cameras before mapping."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from sfm_matchers.choices import PANORAMIC_MODEL
from sfm_matchers.errors import listed
from sfm_matchers.mapping.camera_options import CameraOptions
from sfm_matchers.mapping.mapper import check_mapper
from sfm_matchers.photos.cameras import CameraGroups, group_photos, read_photo_header
from sfm_matchers.photos.given_cameras import find_camera, read_cameras
from sfm_matchers.photos.intrinsics import camera_of_exif, may_be_of_exif
from sfm_matchers.photos.panoramas import looks_like_panorama, may_be_panorama
from sfm_matchers.runs.matching import MatchingJob
from sfm_matchers.runs.options import AUTO, MAPPED_WITH, SfmOptions

logger = logging.getLogger("sfm_matchers.sfm")


@dataclass(frozen=True)
class KnownCameras:
    """What is known of the cameras of a run's photos.

    Attributes:
        options: models and intrinsics, as the user gives them.
        groups: which photos share a camera.
        fixed: photos whose intrinsics are kept as they are.
        given: photos whose intrinsics are given.
        guessed: photos of which only their size says which camera they are of.
        assumed: photos of which their size or EXIF says so, and not the user. EXIF knows nothing of
            digital zoom, and copies of photos may have it from others.
        told_by_exif: photos whose focal length is EXIF's at first.
        panoramas: what to say of photos that look like panoramas, or do not; "" if nothing.
    """

    options: CameraOptions
    groups: CameraGroups
    fixed: set[str]
    given: set[str]
    guessed: set[str]
    assumed: set[str]
    told_by_exif: set[str]
    panoramas: str

    def is_guess(self, groups: CameraGroups) -> bool:
        """True if photos share a camera only because they have one size."""
        return any(len(group) > 1 and self.guessed.issuperset(group) for group in groups.groups)


def read_camera_options(options: SfmOptions) -> CameraOptions:
    """What the user says about the cameras.

    Raises:
        InputError: it cannot be understood.
    """
    given = read_cameras(options.cameras) if options.cameras else []
    model = MAPPED_WITH if options.camera_model == AUTO else options.camera_model
    cameras = CameraOptions(model, options.camera_params, given)
    cameras.reader_options()
    return cameras


def know_cameras(options: SfmOptions, job: MatchingJob) -> KnownCameras:
    """Put together what the user and the photos' files say about the cameras.

    Raises:
        InputError: given intrinsics are not of these photos, or the mapper cannot keep them.
    """
    camera_options = read_camera_options(options)
    sizes = {name: photo.size for name, photo in job.photos.items()}
    camera_options.check(sizes)
    fixed = {name for name in sizes if camera_options.of(name).is_fixed}
    check_mapper(options.mapper, some_fixed=0 < len(fixed) < len(sizes))
    others = {name for name in sizes if find_camera(camera_options.given, name) is None}
    panoramas = point_out_panoramas(options.camera_model, job.image_dir, others)
    headers = {name: read_photo_header(job.image_dir / name) for name in sizes}
    groups = group_photos(headers, options.camera_mode)
    groups = camera_options.split(groups, sizes, options.camera_mode)
    logger.info("Cameras: %s", groups.reason)
    assumed = set()
    # Panoramas have no focal length to tell cameras apart by.
    told_by_size = options.camera_mode == "auto" and not options.camera_params
    if told_by_size and options.camera_model != PANORAMIC_MODEL:
        assumed = others
    guessed = {name for name in assumed if not headers[name].has_exif_camera}
    given = set(sizes) if options.camera_params else set(sizes) - others
    told_by_exif = {
        name
        for name, header in headers.items()
        if header.focal_length and not camera_options.of(name).params
    }
    point_out_absurd_focal_lengths(job.image_dir, groups, told_by_exif)
    return KnownCameras(
        camera_options, groups, fixed, given, guessed, assumed, told_by_exif, panoramas
    )


def point_out_absurd_focal_lengths(
    image_dir: Path, cameras: CameraGroups, told_by_exif: Collection[str]
) -> None:
    """Name photos whose focal length in EXIF no lens has; databases are made without it."""
    absurd: dict[str, float] = {}
    for group in cameras.groups:
        camera = camera_of_exif(image_dir / group[0]) if group[0] in told_by_exif else None
        if camera is not None and not may_be_of_exif(camera):
            absurd |= dict.fromkeys(group, float(camera.mean_focal_length()))
    if absurd:
        first = min(absurd)
        logger.warning(
            "EXIF's focal length is none of %d photo(s), such as %s with %.4g px: it is estimated",
            len(absurd),
            first,
            absurd[first],
        )


def point_out_panoramas(camera_model: str, image_dir: Path, photos: Iterable[str]) -> str:
    """Say so if photos look like panoramas and the camera model is another one, or the reverse.

    Returns:
        What was said, as it may be the reason if no model comes out; "" if nothing.
    """
    names = sorted(photos)
    said = ""
    if camera_model != PANORAMIC_MODEL:
        spheres = [name for name in names if looks_like_panorama(image_dir / name)]
        if spheres:
            said = (
                f"{len(spheres)} of {len(names)} photos look like panoramas ({listed(spheres)}): "
                f"whole spheres need --camera_model {PANORAMIC_MODEL}"
            )
    elif others := [name for name in names if not may_be_panorama(image_dir / name)]:
        said = (
            f"{len(others)} of {len(names)} photos are not twice as wide as high "
            f"({listed(others)}): --camera_model {PANORAMIC_MODEL} is for whole spheres only"
        )
    if said:
        logger.warning("%s", said)
    return said
