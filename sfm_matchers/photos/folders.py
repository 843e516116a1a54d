"""Which files of a folder are photographs."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from sfm_matchers.errors import InputError
from sfm_matchers.files.links import real_path
from sfm_matchers.files.nearest import nearest_path
from sfm_matchers.files.pair_lists import name_faults
from sfm_matchers.photos import heif
from sfm_matchers.photos.images import warn_of
from sfm_matchers.photos.masks import mask_path
from sfm_matchers.photos.video import is_video

logger = logging.getLogger(__name__)


IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm")

# Photos too, which OpenCV or COLMAP do not read everywhere.
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw")
OTHER_EXTENSIONS = (*_RAW, ".avif", ".exr", ".gif", ".jp2", ".jxl", ".pgm", ".tga")

# Folders with these files are the outputs of a run, and what lies in them is no photo.
OUTPUT_MARKS = ("photos.json", "steps.json")

# What a run draws into its outputs.
REPORT_PICTURES = ("model.png", "match_graph.png", "strongest_pair.png", "weakest_pair.png")


def is_photo(path: str | Path) -> bool:
    """Return whether a file is, by its extension, a photo that can be read."""
    extension = Path(path).suffix.lower()
    return extension in IMAGE_EXTENSIONS or (extension in heif.EXTENSIONS and heif.can_read())


def check_folder(path: str | Path) -> None:
    """Raise InputError if a path is not a folder, which should hold photos."""
    if not Path(path).is_dir():
        raise InputError(f"{path} is not a folder of photos{nearest_path(path)}")


def find_images(
    image_dir: str | Path,
    *,
    outputs: str | Path | None = None,
    mask_dir: str | Path | None = None,
    left_out: list[str] | None = None,
) -> list[str]:
    """Return the names of all photos below a folder: sorted POSIX paths relative to it.

    Linked folders are followed once, after the others beside them. What is left out is named in
    the log: photos of other formats, folders that cannot be read, names that files of pairs and
    matches cannot hold, see `storage.name_faults`, and pictures that are no photos: those in the
    outputs of this or another run, and masks.

    Args:
        image_dir: the folder.
        outputs: of this run.
        mask_dir: the folder of the masks, or the one mask of all photos.
        left_out: gets the lines on photos that cannot be used.

    Raises:
        InputError: the folder does not exist.
    """
    image_dir = Path(image_dir)
    check_folder(image_dir)
    names = []
    others: Counter[str] = Counter()
    videos: list[Path] = []
    for folder, files in _photo_folders(image_dir, outputs, mask_dir):
        for file in files:
            if is_photo(file):
                names.append((folder / file).relative_to(image_dir).as_posix())
            elif is_video(file):
                videos.append(folder / file)
            else:
                others[Path(file).suffix.lower()] += 1
    lines = [*_about_others(others), *_about_videos(videos)]
    masks = _masks_among(names, image_dir, mask_dir)
    names = [name for name in names if name not in masks]
    faults = name_faults(names)
    lines += [f"{name!r}: {fault}: rename it" for name, fault in faults.items()]
    for line in lines:
        logger.warning("left out: %s", line)
    if left_out is not None:
        left_out += lines
    return sorted(name for name in names if name not in faults)


def _photo_folders(
    image_dir: Path, outputs: str | Path | None, mask_dir: str | Path | None
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below one that may hold photos, with their files; tell of the others."""
    root = real_path(image_dir)
    no_photos = {
        real_path(path): what
        for path, what in ((mask_dir, "masks"), (outputs, "the outputs of this run"))
        if path is not None
    }
    visited: set[Path] = set()
    for folder, subfolders, files in os.walk(image_dir, onerror=warn_of, followlinks=True):
        real_folder = real_path(folder)
        if real_folder in visited:
            subfolders.clear()
            continue
        visited.add(real_folder)
        what = no_photos.get(real_folder, "the outputs of a run" if is_output(folder) else "")
        if what and real_folder != root:
            _warn_skipped(_count_images(folder), folder, what)
            subfolders.clear()
            continue
        if is_output(folder):
            pictures = [file for file in files if file in REPORT_PICTURES]
            _warn_skipped(len(pictures), folder, "pictures of the run whose outputs they are")
            files = [file for file in files if file not in REPORT_PICTURES]
        links = {name for name in subfolders if os.path.islink(Path(folder) / name)}  # noqa: PTH114
        subfolders.sort(key=lambda name: (name in links, name))
        yield Path(folder), files


def is_output(folder: str | Path) -> bool:
    """Return whether a run has put its outputs into a folder."""
    # Unlike pathlib's, False for a folder that must not be looked into.
    return all(os.path.isfile(Path(folder) / mark) for mark in OUTPUT_MARKS)  # noqa: PTH113


def _count_images(folder: str) -> int:
    return sum(is_photo(file) for _, _, files in os.walk(folder) for file in files)


def _about_others(counts: Mapping[str, int]) -> Iterator[str]:
    """Say how many photos there are that cannot be read, by extension, and what to do."""
    for extension, count in sorted(counts.items()):
        photos = f"{count} photo{'s' if count > 1 else ''} {extension}"
        if extension in heif.EXTENSIONS:
            yield f"{photos}: to read them {heif.INSTALL}"
        elif extension in OTHER_EXTENSIONS:
            yield f"{photos}: convert them to JPEG or PNG"


def _about_videos(videos: Sequence[Path]) -> Iterator[str]:
    if videos:
        what = "a video, " if len(videos) == 1 else f"{len(videos)} videos, such as "
        yield f"{what}{min(videos)}: to use it give it in place of the folder"


def _warn_skipped(count: int, where: str | Path, what: str) -> None:
    if count:
        logger.warning("left out: %d image(s) in %s: %s, no photos", count, where, what)


def _masks_among(names: list[str], image_dir: Path, mask_dir: str | Path | None) -> set[str]:
    """Return which of the images found are masks of others, and say so.

    They are those of `mask_dir`, where that is the folder of the photos itself or a file in it,
    and those that are named as only masks are, ``NAME.jpg.png`` beside another folder's or the
    same folder's ``NAME.jpg``.
    """
    masks: set[str] = set()
    if mask_dir is not None and (
        Path(mask_dir).is_file() or os.path.realpath(mask_dir) == os.path.realpath(image_dir)
    ):
        found = {os.path.realpath(image_dir / name): name for name in names}
        paths = (mask_path(mask_dir, name, image_dir) for name in names)
        used = {os.path.realpath(path) for path in paths if path is not None}
        masks = {found[path] for path in used if path in found}
        _warn_skipped(len(masks), image_dir, "masks")
    files = {PurePosixPath(name).name for name in names}
    named = {
        name
        for name in names
        if name not in masks
        and name.endswith(".png")
        and (owner := PurePosixPath(name).name.removesuffix(".png")) in files
        and is_photo(owner)
    }
    if named:
        logger.warning(
            "left out: %d image(s) named as masks of others, such as %s: to use them, give their "
            "folder as --mask_dir",
            len(named),
            min(named),
        )
    return masks | named
