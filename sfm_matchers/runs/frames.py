"""Photos of a run that come out of a video."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sfm_matchers.errors import InputError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.text import folder_written_whole
from sfm_matchers.photos.folders import check_folder
from sfm_matchers.photos.video import check_readable, is_video, write_frames
from sfm_matchers.runs.options import LocalizeOptions, MatchOptions
from sfm_matchers.runs.workspace import FRAMES_MARK, Workspace

Options = TypeVar("Options", bound=MatchOptions)


def check_source(options: MatchOptions) -> None:
    """Look where the photos come from, before anything takes time, is made or is deleted.

    Raises:
        SfmMatchersError: there is no such folder or video, a video needs an extra, or frames are
            asked for of photos.
    """
    if not is_video(options.image_dir):
        if options.frames is not None:
            raise InputError(f"--frames is for a video, and {options.image_dir} is none")
        check_folder(options.image_dir)
        return
    check_readable(options.image_dir)


def frames_instead_of_video(options: Options) -> Options:
    """Return options whose photos are frames, where they name a video; see `frames_of_video`.

    Raises:
        SfmMatchersError: as `frames_of_video`.
    """
    if not is_video(options.image_dir):
        return options
    folder = frames_of_video(options.image_dir, Workspace(options.outputs), options.frames)
    return replace(options, image_dir=folder, frames=None)


def queries_instead_of_video(options: LocalizeOptions) -> LocalizeOptions:
    """Return options whose queries are frames, where they name a video; see `frames_of_video`.

    Raises:
        SfmMatchersError: as `check_readable` and `frames_of_video`.
    """
    if not is_video(options.queries):
        return options
    check_readable(options.queries)
    return replace(options, queries=frames_of_video(options.queries, Workspace(options.outputs)))


def frames_of_video(path: str | Path, workspace: Workspace, number: int | None = None) -> Path:
    """Write photos out of a video, once, and return their folder, which is in the outputs.

    ``video.json`` in it says when each is shown.

    Args:
        path: of the video.
        workspace: of the run.
        number: of the frames; None: as `write_frames` finds right.

    Raises:
        SfmMatchersError: as `write_frames`, or that folder is somebody else's.
    """
    folder = workspace.frames
    if folder.exists() and not workspace.owns_frames():
        raise InputError(
            f"{folder} is there already and holds no frames of a run: give another folder as "
            "--outputs"
        )
    workspace.path.mkdir(parents=True, exist_ok=True)
    with workspace.timed("frames"):
        source = fingerprint(revisions.FRAMES, content_hash(Path(path)), number)
        if not workspace.is_done(folder.name, source):
            with folder_written_whole(folder) as temporary:
                seconds = write_frames(Path(path), temporary, number)
                about = {"video": str(path), "seconds": seconds}
                text = json.dumps(about, indent=1, ensure_ascii=False)
                (temporary / FRAMES_MARK).write_text(text, "utf-8", "backslashreplace")
            workspace.set_done(folder.name, source, folder)
    return folder
