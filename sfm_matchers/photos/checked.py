"""Photographs, looked at once; they must be the same as long as a run works."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfm_matchers.errors import InputError, listed
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.photos.folders import find_images
from sfm_matchers.photos.images import decoded_size, read_image, read_image_and_orientation
from sfm_matchers.photos.masks import (
    WayUp,
    check_mask_dir,
    mask_names,
    mask_path,
    read_mask_and_way_up,
    usable_pixels,
)

logger = logging.getLogger("sfm_matchers.pipelines")

NOTE = "photos.json"  # of an output folder: which photos can be decoded
MANY = 10  # photos with one fault, from which on they have no line each


def photo_fingerprint(
    content: str,
    mask_dir: str | Path | None,
    name: str,
    image_dir: str | Path | None = None,
) -> str:
    """Return the fingerprint of a photo with its mask.

    Args:
        content: `content_hash` of the photo.
        mask_dir, name, image_dir: see `mask_path`.
    """
    path = mask_path(mask_dir, name, image_dir)
    mask = None if path is None else [revisions.MASKS, content_hash(path)]
    return fingerprint(revisions.PHOTOS, content, mask)


class StoredPhoto(NamedTuple):
    """A photo as its file stores it.

    Attributes:
        image: RGB (H, W, 3) uint8.
        mask: booleans (H, W), as `usable_pixels`.
        orientation: of EXIF, 1 where it was not asked for.
    """

    image: np.ndarray
    mask: np.ndarray | None
    orientation: int = 1


def read_photo(
    image_dir: Path,
    name: str,
    mask_dir: Path | None,
    known_fingerprint: str,
    *,
    with_orientation: bool = False,
) -> StoredPhoto:
    """Decode a photo and its mask, which must be those that a run has begun with.

    Raises:
        InputError: one of them cannot be read, or has another `photo_fingerprint`.
    """
    path, orientation = Path(image_dir) / name, 1
    if with_orientation:
        image, orientation = read_image_and_orientation(path)
    else:
        image = read_image(path)
    mask = usable_pixels(image_dir, name, mask_dir, (image.shape[1], image.shape[0]))
    if photo_fingerprint(content_hash(path), mask_dir, name, image_dir) != known_fingerprint:
        raise InputError(f"{path} has changed since this run began")
    return StoredPhoto(image, mask, orientation)


class CheckedPhoto(NamedTuple):
    """A photo that can be decoded.

    Attributes:
        size: (width, height).
        fingerprint: of its content and mask.
        stamps: of the files of both, when they were read; see `MatchingJob.check_photos_unchanged`.
    """

    size: tuple[int, int]
    fingerprint: str
    stamps: tuple[Stamp | None, ...] = ()


Stamp = tuple[int, int, int]


def _stamp(path: Path | None) -> Stamp | None:
    """What changes when a file is written or replaced."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def stamps_of(image_dir: Path, name: str, mask_dir: Path | None) -> tuple[Stamp | None, ...]:
    """Return what changes when a photo or its mask is written or replaced; None: no file."""
    return (_stamp(image_dir / name), _stamp(mask_path(mask_dir, name, image_dir)))


def check_photos(
    image_dir: Path,
    outputs: str | Path,
    names: Sequence[str] | None = None,
    mask_dir: Path | None = None,
    left_out: list[str] | None = None,
) -> dict[str, CheckedPhoto]:
    """Return the photos that can be decoded, with a fingerprint of their content and mask.

    The others are named in the log. Photos seen before, by content, are not decoded again.

    Args:
        image_dir: the photos.
        outputs: of the run, which remembers them.
        names: photos to look at; all in the folder if None. One that is missing is left out.
        mask_dir: a folder of masks, or one mask for all, see `images.mask_path`.
        left_out: gets the lines on photos that cannot be used.

    Raises:
        InputError: there is no such folder.
    """
    cache_path = Path(outputs) / NOTE
    cache = read_memory(cache_path)
    if names is None:
        names = find_images(image_dir, outputs=outputs, mask_dir=mask_dir, left_out=left_out)

    stamps = {name: stamps_of(image_dir, name, mask_dir) for name in names}

    def check(name: str) -> dict[str, Any]:
        if not (image_dir / name).is_file():
            fault = "is no file" if (image_dir / name).exists() else "is missing"
            return {"unreadable": f"{image_dir / name} {fault}"}
        try:
            content = content_hash(image_dir / name)
        except OSError as error:
            return {"unreadable": f"{image_dir / name} cannot be read: {error.strerror}"}
        if _is_note(cache.get(name), content):
            return dict(cache[name])
        try:
            size = decoded_size(image_dir / name)
        except InputError as error:
            return {"content": content, "unreadable": str(error)}
        return {"content": content, "size": list(size)}

    with ThreadPoolExecutor() as executor:
        found = dict(zip(names, executor.map(check, names), strict=True))
    write_memory(cache_path, {**cache, **found})
    unreadable = {k: v["unreadable"] for k, v in found.items() if "unreadable" in v}
    for line in _about_unreadable(image_dir, unreadable):
        logger.warning("left out: %s", line)
        if left_out is not None:
            left_out.append(line)
    return {
        name: CheckedPhoto(
            tuple(found[name]["size"]),
            photo_fingerprint(found[name]["content"], mask_dir, name, image_dir),
            stamps[name],
        )
        for name in names
        if "unreadable" not in found[name]
    }


def _about_unreadable(image_dir: Path, faults: Mapping[str, str]) -> Iterator[str]:
    """Name photos that are left out, a line each; where many have one fault, one line for them."""
    names_of: dict[str, list[str]] = {}
    for name, fault in faults.items():
        names_of.setdefault(fault.replace(str(image_dir / name), "").strip(), []).append(name)
    for fault, names in names_of.items():
        if len(names) > MANY:
            kind = f"{len(names)} files of {image_dir}: each {fault}"
            yield f"{kind}: {listed(names)} ({NOTE} names all)"
        else:
            yield from (faults[name] for name in names)


def _is_note(note: Any, content: str) -> bool:
    """Whether an earlier run noted this of a photo of this content, or something else did.

    Photos that could not be read are tried again: there may be a decoder now.
    """
    if not isinstance(note, dict) or note.get("content") != content:
        return False
    size = note.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)


def check_masks(mask_dir: Path, image_dir: Path, photos: Mapping[str, CheckedPhoto]) -> float:
    """Say how many photos have a mask, how much it ignores, and how it lies on turned photos.

    Args:
        mask_dir: see `images.mask_path`.
        image_dir: the photos.
        photos: from `check_photos`.

    Returns:
        The share of their pixels that masks ignore, in the mean of the photos that have one.

    Raises:
        InputError: there are no masks, none is of a photo, one does not fit its photo, or they do
            not tell whether they are of photos as stored or set upright.
    """
    check_mask_dir(mask_dir)
    names_by_way: dict[WayUp, list[str]] = {way_up: [] for way_up in WayUp}
    ignored: dict[str, float] = {}
    for name, photo in photos.items():
        mask = read_mask_and_way_up(mask_dir, name, photo.size, image_dir)
        if mask is not None:
            names_by_way[mask.way_up].append(name)
            ignored[name] = 1 - float(mask.usable.mean())
    without = sorted(photos.keys() - ignored.keys())
    if photos and not ignored:
        expected = " or ".join(str(mask_dir / mask) for mask in mask_names(without[0]))
        raise InputError(f"{mask_dir} holds no mask of any photo: expected for example {expected}")
    share = float(np.mean(list(ignored.values()))) if ignored else 0.0
    logger.info(
        "%d of %d photos have a mask, which ignores %.0f %% of their pixels (what is black)%s",
        len(ignored),
        len(photos),
        100 * share,
        f"; none: {listed(without)}" if without else "",
    )
    _point_out_useless_masks(ignored)
    _explain_turned_masks(names_by_way, one_for_all=mask_dir.is_file())
    return share


def _point_out_useless_masks(ignored: Mapping[str, float]) -> None:
    """Warn of masks that ignore nothing, or all: name -> share of its pixels."""
    if ignored and not any(ignored.values()):
        logger.warning("the masks ignore nothing: black (0) is ignored, and none has any")
    if everything := sorted(name for name, share in ignored.items() if share == 1):
        logger.warning(
            "%d mask(s) ignore the whole photo: %s: black is ignored, white is used",
            len(everything),
            listed(everything),
        )


def _explain_turned_masks(names_by_way: Mapping[WayUp, list[str]], *, one_for_all: bool) -> None:
    upright, either = names_by_way[WayUp.UPRIGHT], names_by_way[WayUp.EITHER]
    stored = names_by_way[WayUp.STORED]
    if upright:
        logger.info(
            "%d mask(s) fit the photo set upright, and are turned as its EXIF tells: %s",
            len(upright),
            listed(upright),
        )
    if not either:
        return
    remedy = "remove the EXIF orientation of these photos if their masks fit the stored pixels"
    if stored or (one_for_all and names_by_way[WayUp.SAME]):
        raise InputError(
            f"the masks of {listed(either)} fit the photo as stored and as EXIF sets it upright; "
            f"other masks are of photos as stored, so this cannot be told: {remedy}"
        )
    logger.warning(
        "%d mask(s) fit the photo as stored and as EXIF sets it upright; they are taken for masks "
        "of the upright photo, as viewers show it (%s): %s",
        len(either),
        listed(either),
        remedy,
    )
