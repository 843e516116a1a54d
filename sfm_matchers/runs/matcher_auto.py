"""A stronger matcher for the photos that the first leaves out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pycolmap

from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.hdf5 import mean_layers_run, open_h5
from sfm_matchers.files.pair_lists import Pair, read_pairs, write_pairs
from sfm_matchers.keypoints.joining import join_features, join_matches
from sfm_matchers.mapping.diagnosis import count
from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.runs.mapping import Build
from sfm_matchers.runs.matching import choose_matching
from sfm_matchers.runs.options import AUTO, AUTO_MATCHERS

logger = logging.getLogger("sfm_matchers.sfm")


def match_again(build: Build, cameras: CameraGroups, label: str) -> tuple[Build, str]:
    """Match the photos that the first matcher leaves out of its model with a stronger one.

    Returns:
        What builds the models of the matches of both, and what was done, for the summary.
    """
    job, workspace = build.job, build.job.workspace
    first = (build.feature_path, build.match_path)
    again_label = f"{label}-again"
    again_path = workspace.pairs(again_label)
    source = build.model_source(cameras)
    if not workspace.is_done(again_path.name, source):
        with open_h5(first[0]) as features:  # without keypoints a photo is blank
            names = {name for pair in build.pairs for name in pair}
            usable = {name for name in names if len(features.keypoints(name))}
        pairs = [pair for pair in build.pairs if usable.issuperset(pair)]
        write_pairs(again_path, pairs_across_models(build.make(cameras), pairs))
        workspace.set_done(again_path.name, source, again_path)
    again = read_pairs(again_path, job.photos)
    if not again:
        return build, f"{AUTO}: {AUTO_MATCHERS[0]}"
    number = count(len(again), "pair")
    logger.info("%s leaves photos out of its model: %s matches %s", *AUTO_MATCHERS, number)
    options = replace(build.options, matcher=AUTO_MATCHERS[1])
    matching = choose_matching(options, detail=options.detail)
    second = replace(job, matching=matching).match(again, again_label)
    both = workspace.joined(label)
    source = fingerprint(revisions.JOINED, *map(content_hash, (*first, *second)))
    if not workspace.is_done(both[1].name, source):
        join_features(first[0], second[0], both[0])
        join_matches(build.pairs, first, second, both[1])
        workspace.set_done(both[1].name, source, *both)
    described = f"{AUTO}: {AUTO_MATCHERS[0]}, then {AUTO_MATCHERS[1]} for {number}"
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
