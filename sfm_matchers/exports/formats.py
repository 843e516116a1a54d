"""The table of exports, and what writes them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from sfm_matchers.confs.options import suggestion
from sfm_matchers.errors import InputError, listed
from sfm_matchers.exports import nerfstudio, undistorted
from sfm_matchers.exports.images import link_photos, photo_faults, registered_names, without_images
from sfm_matchers.exports.outputs import PREPARED, OutputFolder
from sfm_matchers.exports.ply import model_points, write_ply
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.links import real_path
from sfm_matchers.files.replacing import temporary_folder
from sfm_matchers.files.space import writing
from sfm_matchers.mapping.models import model_folder, read_model, write_model
from sfm_matchers.photos import heif
from sfm_matchers.photos.folders import check_folder, is_output

logger = logging.getLogger("sfm_matchers.exports")

# Raised when the files of the same input become others.

PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")
GSPLAT_CAMERAS = (*PINHOLES, "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE")
UNDISTORTED = "undistorted"
TAKE_UNDISTORTED = "take the export undistorted, whose cameras and photos every tool reads"

# Inria's 3DGS takes the middle of a photo for its principal point: said from this share of a side.
_OFF_CENTRE = 0.01


@dataclass(frozen=True)
class Export:
    """What was written in one format.

    Attributes:
        format: its name in `FORMATS`.
        path: the file or folder to give to the tool; None if nothing was written.
        notes: for the user, a line each: what was left out, or why nothing was written.
        instead: the format that serves where nothing was written, if there is one.
    """

    format: str
    path: Path | None
    notes: tuple[str, ...] = ()
    instead: str = ""

    def described(self) -> str:
        """Return path and notes in one line."""
        return "; ".join([str(self.path or "not written"), *self.notes])


@dataclass(frozen=True)
class Job:
    """A model whose photos are all there, and where its exports go.

    Attributes:
        whole: the model as given.
        model: the model without images that have no photo.
        written: a folder with that model.
        source: the folder of the model as given, or None.
        image_dir: the photos.
        output: where to.
        photos_source: fingerprint of `model` and its photos.
    """

    whole: pycolmap.Reconstruction
    model: pycolmap.Reconstruction
    written: Path
    source: Path | None
    image_dir: Path
    output: OutputFolder
    photos_source: str

    def camera_models(self) -> set[str]:
        """Return COLMAP's names of the cameras that have photos."""
        return {
            self.model.camera(self.model.image(image_id).camera_id).model.name
            for image_id in self.model.reg_image_ids()
        }


def export_ply(job: Job) -> Export:
    """Write ``points3D.ply``: the points with their colours."""
    name, source = "points3D.ply", _points_source(job)
    if not job.output.is_current(name, source):
        with job.output.file(name, source) as path:
            write_ply(path, *model_points(job.whole))
    return Export("ply", job.output.path / name)


def _points_source(job: Job) -> str:
    """What ``points3D.ply`` is made of: the photos have no part in it."""
    hashes = (hashlib.sha256(array.tobytes()).hexdigest() for array in model_points(job.whole))
    return fingerprint(revisions.EXPORTS, *hashes)


def export_gsplat(job: Job) -> Export:
    """Write ``images/`` beside ``sparse/0``: what gsplat, and for pinhole cameras Inria's, read."""
    if reason := _unread_photos(job):
        return _not_exported("gsplat", reason, job)
    cameras = job.camera_models()
    if unknown := cameras.difference(GSPLAT_CAMERAS):
        reason = f"gsplat reads no {', '.join(sorted(unknown))} cameras"
        return _not_exported("gsplat", reason, job)
    notes = []
    _write_images(job)
    name, output = "sparse/0", job.output
    in_place = job.source is not None and _same(job.source, output.path / name)
    if in_place:
        if job.model.num_reg_images() < job.whole.num_reg_images():
            notes.append(
                f"{job.source} still has the images without photo: give another folder as --output"
            )
    elif not output.is_current(name, job.photos_source):
        with output.folder(name, job.photos_source) as folder:
            for table in job.written.iterdir():
                shutil.copyfile(table, folder / table.name)
    if distorted := cameras.difference(PINHOLES):
        notes.append(
            f"has {', '.join(sorted(distorted))} cameras, which gsplat undistorts itself; for "
            f"Inria's 3DGS {TAKE_UNDISTORTED}"
        )
    else:
        notes += _off_centre(job.model)
        if any("/" in name for name in registered_names(job.model)):
            notes.append(f"older versions of Inria's 3DGS look for no folders: {TAKE_UNDISTORTED}")
    return Export("gsplat", output.path, tuple(notes))


def export_undistorted(job: Job) -> Export:
    """Write ``undistorted/``: photos without lens distortion, and a PINHOLE model of them."""
    if reason := undistorted.cannot_undistort(job.model):
        return Export("undistorted", None, (reason,))
    name = "undistorted"
    path = job.output.path / name
    names = undistorted.flat_names(job.model, job.image_dir)
    if not job.output.is_current(name, job.photos_source):
        logger.info("Undistorting %d photos", len(names))
        with job.output.folder(name, job.photos_source) as folder:
            undistorted.undistort(job.model, job.image_dir, names, folder)
    model = pycolmap.Reconstruction(path / "sparse" / "0")
    written = set(registered_names(model))
    notes = _describe_skipped(
        {
            name: "COLMAP cannot decode or write it"
            for name, new in names.items()
            if new not in written
        }
    )
    if not written:
        return Export("undistorted", None, tuple(notes))
    if renamed := [name for name in names if name != names[name]]:
        number = len(renamed)
        have = "1 photo has a new name" if number == 1 else f"{number} photos have new names"
        notes.append(f"{have}: {renamed[0]} is {names[renamed[0]]}")
    return Export("undistorted", path, (*notes, *_off_centre(model)))


def export_nerfstudio(job: Job) -> Export:
    """Write ``transforms.json`` and ``sparse_pc.ply``, beside ``images/``."""
    if reason := _unread_photos(job):
        return _not_exported("nerfstudio", reason, job)
    kind, reason = nerfstudio.scene_kind(job.model)
    if not kind:
        return _not_exported("nerfstudio", reason, job)
    _write_images(job)
    output, source = job.output, job.photos_source
    points_name, name = "sparse_pc.ply", "transforms.json"
    if not (output.is_current(points_name, source) and output.is_current(name, source)):
        with output.file(points_name, source) as path:
            xyz, rgb = model_points(job.model)
            write_ply(path, nerfstudio.to_saved_world(xyz), rgb)
        with output.file(name, source) as path:
            content = nerfstudio.transforms(job.model, kind, points_name)
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    return Export("nerfstudio", output.path / name)


def _unread_photos(job: Job) -> str:
    """Return why other tools do not read the photos; "" if they do."""
    if any(heif.is_heif_file(job.image_dir / name) for name in registered_names(job.model)):
        return "other tools read no HEIC photos"
    return ""


def _not_exported(name: str, reason: str, job: Job) -> Export:
    """Return why there is no such export, and the one to take instead if that can be."""
    if not_either := undistorted.cannot_undistort(job.model):
        return Export(name, None, (f"{reason}, and {not_either}",))
    return Export(name, None, (f"{reason}: {TAKE_UNDISTORTED}",), UNDISTORTED)


@dataclass(frozen=True)
class Format:
    """A row of the table of exports.

    Attributes:
        writes: what it writes, in the folder of the exports.
        write: the function that does.
    """

    writes: tuple[str, ...]
    write: Callable[[Job], Export]


FORMATS: dict[str, Format] = {  # by the names in `choices.EXPORTS`
    "nerfstudio": Format(("images", "sparse_pc.ply", "transforms.json"), export_nerfstudio),
    "gsplat": Format(("images", "sparse/0"), export_gsplat),
    "undistorted": Format(("undistorted",), export_undistorted),
    "ply": Format(("points3D.ply",), export_ply),
}


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats of a list with commas, each once.

    Raises:
        InputError: one is unknown.

    >>> parse_formats("ply, gsplat")
    ('ply', 'gsplat')
    """
    names = dict.fromkeys(word.strip().lower() for word in text.split(",") if word.strip())
    for name in names:
        if name not in FORMATS:
            raise InputError(f"no export is called {name!r}{suggestion(name, FORMATS)}")
    return tuple(names)


def check_image_dir(formats: Sequence[str], image_dir: str | Path | None) -> None:
    """Raise InputError if the photos that formats need are not given, or not there."""
    if image_dir is not None:
        check_folder(image_dir)
    elif set(formats) != {"ply"}:
        raise InputError("--image_dir: the folder of the model's photos is needed")


def check_place(
    formats: Iterable[str],
    image_dir: Path,
    output: Path,
    *,
    model_dir: Path | None = None,
    is_run: bool = False,
) -> None:
    """Raise InputError if exports would be in the way of photos, or other files in theirs.

    Args:
        formats: names in `FORMATS`.
        image_dir: the photos.
        output: the folder of the exports.
        model_dir: the model, which may lie where its export would.
        is_run: the folder is that of a run, whose photos are passed over by later ones.
    """
    photos, folder = real_path(image_dir), real_path(output)
    is_passed_over = folder != photos and (is_run or is_output(folder))
    names = dict.fromkeys(name for format_ in formats for name in FORMATS[format_].writes)
    holds_photos = any(not name.endswith((".ply", ".json")) for name in names)
    if holds_photos and photos in (folder, *folder.parents) and not is_passed_over:
        raise InputError(
            f"{output} lies in the folder of the photos, where the exported ones would be taken "
            "for further photos: give a folder outside of it"
        )
    files = OutputFolder(output)
    for name in names:
        own = [photos] if model_dir is None else [photos, real_path(model_dir)]
        if real_path(folder / name) not in own:
            files.check(name)


def export_model(
    model: str | Path | pycolmap.Reconstruction,
    image_dir: str | Path | None,
    output: str | Path,
    formats: Sequence[str] = tuple(FORMATS),
) -> list[Export]:
    """Write a model and its photos in the formats of other tools.

    Images without a fitting photo are left out and named in the log. Older exports in the folder
    are replaced, each in one step; those that are of the same model and photos stay.

    Args:
        model: a COLMAP model, or its folder, as `models.read_model` takes it.
        image_dir: the photos; ``ply`` alone needs none.
        output: the folder to write to.
        formats: names in `FORMATS`.

    Returns:
        What was written, in the order of `formats`, and what is to be taken instead of one of them.

    Raises:
        InputError: a format is unknown, there is no such model, no photo of it is there, or the
            folder holds other files where exports would be written.
        OutputError: the folder cannot be written to.
    """
    chosen = parse_formats(",".join(formats))
    output = Path(output)
    given = model if isinstance(model, pycolmap.Reconstruction) else read_model(model)
    source = None if isinstance(model, pycolmap.Reconstruction) else model_folder(Path(model))
    check_image_dir(chosen, image_dir)
    photos = None if image_dir is None else Path(image_dir)
    check_place(chosen, photos or Path(), output, model_dir=source)
    with _prepared(given, source, photos, output) as job:
        exports = [FORMATS[name].write(job) for name in chosen]
        for export in exports:
            if export.path is None:
                logger.warning("export %s: %s", export.format, export.described())
        for name in dict.fromkeys(export.instead for export in exports):
            if name and name not in chosen:
                with suppress(InputError):  # other files are in its place, and nobody asked for it
                    check_place([name], photos or Path(), output)
                    exports.append(FORMATS[name].write(job))
        return exports


def outdated_formats(model: str | Path, image_dir: str | Path, output: str | Path) -> list[str]:
    """Return the formats that were exported to a folder, but of another model or other photos.

    Args:
        model: folder of the COLMAP model as it is now.
        image_dir: its photos.
        output: the folder of the exports.
    """
    output = Path(output)
    if not (noted := OutputFolder(output).noted()):
        return []
    given = read_model(model)
    if len(photo_faults(given, Path(image_dir))) == given.num_reg_images():
        return []
    with _prepared(given, None, Path(image_dir), output, is_told=False) as job:
        source_of = dict.fromkeys(noted, job.photos_source) | {"points3D.ply": _points_source(job)}
        names = registered_names(job.model)
    differ = {name for name, source in noted.items() if source != source_of[name]}
    differ -= {"images", "sparse/0"}  # these are the photos, and may be the model itself
    outdated = {name for name in FORMATS if differ.intersection(FORMATS[name].writes)}
    is_whole = "images" not in noted or all((output / "images" / name).exists() for name in names)
    if not (is_whole or "nerfstudio" in outdated):
        outdated.add("gsplat")
    return [name for name in FORMATS if name in outdated]


@contextmanager
def _prepared(
    whole: pycolmap.Reconstruction,
    source: Path | None,
    image_dir: Path | None,
    output: Path,
    *,
    is_told: bool = True,
) -> Iterator[Job]:
    """Give the job: what remains of a model without images that have no photo, written once."""
    skipped = photo_faults(whole, image_dir) if image_dir else {}
    model = without_images(whole, skipped) if skipped else whole
    also = set(registered_names(whole)).difference(registered_names(model), skipped)
    skipped |= dict.fromkeys(sorted(also), "it was taken together with one that is left out")
    notes = _describe_skipped(skipped)
    if not model.num_reg_images():
        why = notes[0] if notes else "none has a pose"
        where = f"{source}: " if source else ""
        raise InputError(f"{where}no image of the model can be exported: {why}")
    for note in notes if is_told else ():
        logger.warning("%s", note)
    with temporary_folder(output / PREPARED) as written:
        with writing(output / "sparse"):
            write_model(model, written)
        photos = [image_dir / name for name in registered_names(model)] if image_dir else []
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in photos]
        yield Job(
            whole,
            pycolmap.Reconstruction(written),
            written,
            source,
            image_dir or Path(),
            OutputFolder(output),
            fingerprint(_model_fingerprint(written), str(image_dir), stats),
        )


def _model_fingerprint(folder: Path) -> str:
    tables = (folder / f"{table}.bin" for table in ("cameras", "images", "points3D"))
    return fingerprint(revisions.EXPORTS, *map(content_hash, tables))


def _write_images(job: Job) -> None:
    """Put the photos into ``images/``, unless that is where they are."""
    name, output = "images", job.output
    if _same(job.image_dir, output.path / name) or output.is_current(name, job.photos_source):
        return
    with output.folder(name, job.photos_source) as folder:
        link_photos(registered_names(job.model), job.image_dir, folder)


def _same(path: Path, other: Path) -> bool:
    return real_path(path) == real_path(other)


def _describe_skipped(reasons: dict[str, str]) -> list[str]:
    """Name images that are left out, those of one reason in one line."""
    names_of: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names_of.setdefault(reason, []).append(name)
    return [f"left out: {listed(names)}: {reason}" for reason, names in names_of.items()]


def _off_centre(model: pycolmap.Reconstruction) -> Iterable[str]:
    """Say so if principal points lie where Inria's 3DGS does not look for them."""
    offset = max(
        max(
            abs(camera.principal_point_x / camera.width - 0.5),
            abs(camera.principal_point_y / camera.height - 0.5),
        )
        for camera in model.cameras.values()
    )
    if offset > _OFF_CENTRE:
        yield (
            f"principal points are up to {offset:.0%} of a side off the middle of the photo, where "
            "Inria's 3DGS takes them to be; gsplat and nerfstudio read them"
        )
