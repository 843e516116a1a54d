"""The first steps of a run alone: features, and matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfm_matchers.confs import SparseConf
from sfm_matchers.errors import InputError
from sfm_matchers.runs.forecast import announce_matching
from sfm_matchers.runs.frames import frames_instead_of_video
from sfm_matchers.runs.matching import choose_matching
from sfm_matchers.runs.options import MatchOptions, make_options
from sfm_matchers.runs.pairs import make_pairs
from sfm_matchers.runs.reconstruct import check_inputs, start_photos
from sfm_matchers.runs.results import MatchResult
from sfm_matchers.runs.workspace import Workspace


def extract(image_dir: str | Path, output: str | Path, **options: Any) -> Path:
    """Extract the features of all photos of a folder.

    Args:
        image_dir: the photos, or a video (with the extra ``video``).
        output: folder for all results.
        options: of `MatchOptions`, such as ``matcher="aliked+mambaglue"``.

    Returns:
        The feature file (HDF5), as hloc has it.

    Raises:
        SfmMatchersError: an option or an input cannot be used, or the matcher has no features.
    """
    chosen = make_options(MatchOptions, image_dir=image_dir, outputs=output, **options)
    matching = choose_matching(chosen, detail=chosen.detail)
    if not isinstance(matching.conf, SparseConf):
        raise InputError(f"{chosen.matcher} matches photos without features: call match instead")
    with Workspace(output).alone():
        check_inputs(chosen)
        with_photos = frames_instead_of_video(chosen)
        job = start_photos(with_photos, matching)
        path = job.extract(matching.conf, sorted(job.photos))
        job.check_photos_unchanged()
    return path


def match(image_dir: str | Path, output: str | Path, **options: Any) -> MatchResult:
    """Match the photos of a folder; what is done already is not done again.

    Args:
        image_dir: the photos, or a video (with the extra ``video``).
        output: folder for all results.
        options: of `MatchOptions`, such as ``matcher="jamma", pairs="sequential"``.

    Raises:
        SfmMatchersError: an option or an input cannot be used, or another run works in `output`.
    """
    chosen = make_options(MatchOptions, image_dir=image_dir, outputs=output, **options)
    matching = choose_matching(chosen, detail=chosen.detail)
    with Workspace(output).alone():
        check_inputs(chosen)
        with_photos = frames_instead_of_video(chosen)
        job = start_photos(with_photos, matching)
        pairs, label = make_pairs(with_photos, job)
        announce_matching(job, pairs, label, str(chosen.pairs), chosen.num_matched)
        features, matches = job.match(pairs, label)
    return MatchResult(pairs, features, matches, job.workspace.pairs(label))
