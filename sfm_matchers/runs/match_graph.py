"""Before the mapper: pairs of places that look alike, and what is fixed in the photos; after it:
models joined, or apart."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pycolmap

from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.mapping.diagnosis import MatchGraph, count
from sfm_matchers.mapping.fixed_pixels import FixedPixels
from sfm_matchers.mapping.look_alikes import (
    SuspiciousPair,
    VerifiedGraph,
    describe,
    drop_pairs,
    find_look_alikes,
)
from sfm_matchers.mapping.merging import what_is_missing
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.workspace import Workspace

logger = logging.getLogger("sfm_matchers.sfm")


def check_pairs(workspace: Workspace, options: SfmOptions, fixed: FixedPixels | None) -> None:
    """Look for pairs of two places in the workspace's database, and note and drop them.

    Where the mapper's own model is wanted (`no_refine`) they are noted only.

    Args:
        workspace: of the run, or a trial.
        options: of the run.
        fixed: what was left out of the database, to be noted too.
    """
    found: list[SuspiciousPair] = []
    if not options.keep_all_pairs:
        found = find_look_alikes(VerifiedGraph.read(workspace.database))
    if found and not options.no_refine:
        drop_pairs(workspace.database, found)
        logger.warning(
            "%s dropped: their photos look alike, but seem to show two places (--keep_all_pairs "
            "keeps them)",
            count(len(found), "pair"),
        )
    pairs = [asdict(pair) for pair in found]
    memory = {"pairs": pairs, "dropped": not options.no_refine}
    if fixed is not None:
        memory["fixed"] = asdict(fixed)
    write_memory(workspace.look_alikes, memory)


def doubt_about_pairs(workspace: Workspace) -> str:
    """Why the model may be wrong: pairs of two places that were mapped; "" if there are none."""
    memory = read_memory(workspace.look_alikes)
    if memory.get("dropped", True) or not memory["pairs"]:
        return ""
    pairs = count(len(memory["pairs"]), "pair")
    return f"{pairs} of photos look alike, but seem to show two places: the model may be wrong"


def describe_match_graph(
    workspace: Workspace, models: Sequence[pycolmap.Reconstruction], graph: MatchGraph
) -> dict[str, Any]:
    """Lines for the summary: pairs of places that look alike, models joined or apart.

    Args:
        workspace: of the run.
        models: the largest first.
        graph: of the run.
    """
    memory = read_memory(workspace.look_alikes)
    pairs = [SuspiciousPair(tuple(pair.pop("names")), **pair) for pair in memory.get("pairs", ())]
    apart = what_is_missing(models, graph)
    fixed = FixedPixels(**memory["fixed"]).summary() if "fixed" in memory else ""
    for line in [*apart, *filter(None, [fixed])]:
        logger.warning("%s", line)
    return {
        "fixed pixels": fixed,
        "look-alikes": describe(pairs, are_dropped=memory.get("dropped", False)),
        "joined models": "; ".join(read_memory(workspace.camera_models).get("joined", ())),
        "models apart": "; ".join(apart),
    }
