"""What came of a run, in one line: how good it is, and what to try next."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pycolmap

from sfm_matchers.errors import listed
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.localization.poses import LocalizationOptions, LocalizedQuery, Status
from sfm_matchers.mapping.diagnosis import TURNED, Cause, count

Level = Literal["good", "fair", "poor"]

# Shares of the photos in the model, below which it is not good, or poor.
GOOD, POOR = 0.95, 0.6
LARGE_ERROR = 2.0  # pixels, of the mean reprojection error
MOSTLY_MASKED = 0.5  # of the pixels: where photos are missing, masks may be the other way round
MIN_PHOTOS = 3  # two that match make no model worth the name

# What finds more where a matcher fails, the cheaper first.
STRONGER = {
    "sift": "jamma",
    "sift+mambaglue": "aliked+mambaglue",
    "disk+mambaglue": "aliked+mambaglue",
    "superpoint+mambaglue": "aliked+mambaglue",
    "auto": "jamma",
    "aliked+mambaglue": "jamma",
    "eloftr": "jamma",
}
# CPU seconds of a pair with all that a conf asks for, on a core that multiplies matrices at
# `REFERENCE_SPEED`; docs/performance.md has what they are made of.
CPU_SECONDS = {"jamma": 9.0, "aliked+mambaglue": 3.0}
REFERENCE_SPEED = 100e9  # float32 operations a second


@dataclass(frozen=True)
class Verdict:
    """A judgement of a run.

    Attributes:
        level: ``good``, ``fair`` or ``poor``.
        text: one line: what came out, and what to try next where it is not good.
    """

    level: Level
    text: str


def judge_model(
    models: Sequence[pycolmap.Reconstruction],
    names: Sequence[str],
    pairs: Sequence[Pair],
    *,
    matcher: str,
    device: str = "cpu",
    faults: Mapping[str, str] | None = None,
    doubt: str = "",
    turned: Collection[str] = (),
    cause: Cause | None = None,
    masked: float = 0.0,
) -> Verdict:
    """Judge the models of a run.

    Args:
        models: what came out, the largest first.
        names: of all photos.
        pairs: that were matched.
        matcher: as the run's option names it.
        device: the run's.
        faults: what is wrong with photos that have no keypoints, from `diagnosis.poor_photos`.
        doubt: why the model may be wrong, or photos are missing; "" if nothing says so.
        turned: photos of the first model that have no parallax, from `turning`.
        cause: of there being no model, from `diagnosis.explain`.
        masked: share of the photos' pixels that masks ignore.
    """
    faults = faults or {}
    total = len(names)
    found = models[0].num_reg_images() if models else 0
    usable = max(total - len(faults), 0)
    missing = usable - found
    if found >= total:
        what = f"all {total} photos are in the model"
    elif not models:
        what = f"no model of {count(total, 'photo')}" + (f": {cause.what}" if cause else "")
    else:
        what = f"only {found} of {total} photos are in the model"
        own, *further = (set(model.reg_image_ids()) for model in models)
        if others := len(set().union(*further) - own):
            what += f", {others} more in further ones"
    advice = ""
    if missing > 0:
        advice = (cause.remedy if cause else "") or _advice(names, pairs, matcher, device)
    if faults:
        advice = "; ".join(filter(None, [_about_faults(faults), advice]))
    if masked > MOSTLY_MASKED and found < total:
        ignored = f"the masks ignore {100 * masked:.0f} % of the photos: black is ignored"
        advice = "; ".join(filter(None, [advice, f"{ignored}, white is used"]))
    if turned and len(turned) >= found:
        nothing = "between them, so that its places and all depths mean nothing"
        return Verdict("poor", f"{what}, but {TURNED.what} {nothing}: {TURNED.remedy}")
    if not models or found < POOR * total or (found < MIN_PHOTOS < total):
        return Verdict("poor", "; ".join(filter(None, [what, doubt, advice])))
    error = models[0].compute_mean_reprojection_error()
    if error > LARGE_ERROR:
        doubt = doubt or f"its mean error of {error:.1f} px is large: check cameras and intrinsics"
    if turned:
        doubt = "; ".join(filter(None, [doubt, _about_turned(turned)]))
    if doubt:
        return Verdict("fair", "; ".join(filter(None, [what, doubt, advice])))
    what = what.removeprefix("only ")
    if found < GOOD * total:
        return Verdict("fair", f"{what}; {advice}" if advice else what)
    return Verdict("good", f"{what}, with a mean error of {error:.2f} px")


def judge_localization(
    queries: Sequence[LocalizedQuery],
    matcher: str,
    num_photos: int | None = None,
    *,
    has_map_photos: bool = True,
) -> Verdict:
    """Judge the poses of queries.

    Args:
        queries: with what became of them.
        matcher: as the run's option names it.
        num_photos: of the map, where it may be so small that queries were matched with all of it.
        has_map_photos: they can be matched again; a map that is ready has one matcher.
    """
    total = len(queries)
    found = sum(query.status is Status.LOCALIZED for query in queries)
    unsure = sum(query.status is Status.LOW_CONFIDENCE for query in queries)
    what = f"{found} of {count(total, 'query', 'queries')} localized"
    if found == total:
        return Verdict("good", what)
    if unsure:
        what += f", {unsure} with low confidence"
    tried = max(len(query.database_names) for query in queries)
    options = ["a larger --num_loc"] if num_photos is None or tried < num_photos else []
    if matcher in STRONGER:
        other = f"--matcher {STRONGER[matcher]}"
        its_model = f"the model as --map, with --map_images and {other}"
        options.append(other if has_map_photos else its_model)
    options = options or ["a map of more photos"]
    advice = "the report has a reason for each"  # which the log says too
    if any(_may_gain_by_matches(query) for query in queries):
        advice = f"try {', or '.join(options)}; {advice}"
    level: Level = "poor" if found < POOR * total else "good" if found >= GOOD * total else "fair"
    return Verdict(level, f"{what}; {advice}" if level != "good" else what)


def _may_gain_by_matches(query: LocalizedQuery) -> bool:
    """Whether more or other matches may give a query its place.

    Not where it has enough of them, and not where its photo could not be matched at all.
    """
    if query.status is Status.LOW_CONFIDENCE and query.reason:
        return not LocalizationOptions().is_confident(query.inliers)
    return query.status is not Status.LOCALIZED and bool(query.database_names)


def _advice(names: Sequence[str], pairs: Sequence[Pair], matcher: str, device: str) -> str:
    """What to try for photos that are not in the model, the likeliest first."""
    options = []
    every = len(names) * (len(names) - 1) // 2
    stronger = STRONGER.get(matcher)
    if stronger:
        options.append(f"--matcher {stronger}{_about_seconds(stronger, len(pairs), device)}")
    if len(pairs) < every:
        options.append(f"--pairs exhaustive ({every:,} pairs instead of {len(pairs):,})")
    options.append("photos between those that match")
    return f"try {options[0]}" + (f", or {options[1]}" if len(options) > 1 else "")


def _about_faults(faults: Mapping[str, str]) -> str:
    kinds = sorted({fault for fault in faults.values() if fault})
    without = f"{count(len(faults), 'photo')} without enough keypoints"
    if not kinds:
        return f"{without}: a larger --max_image_size, or take them again"
    by_mask = [kind for kind in kinds if "masked" in kind or "transparent" in kind]
    remedy = "take them again"
    if by_mask:
        rest = ", or take them again" if len(by_mask) < len(kinds) else ""
        remedy = f"check what is masked or transparent there{rest}"
    return f"{without} ({', '.join(kinds)}): {remedy}"


def _about_turned(turned: Collection[str]) -> str:
    photos, places = "photo", "its place"
    if len(turned) > 1:
        photos, places = "photos", "their places"
    return (
        f"of {len(turned)} {photos} ({listed(sorted(turned))}) nothing tells {places}, as the "
        "camera only turned there: take photos a step aside too"
    )


def _about_seconds(matcher: str, num_pairs: int, device: str) -> str:
    """How long a matcher takes on this machine, roughly; "" where nobody has measured."""
    if device not in ("auto", "cpu") or matcher not in CPU_SECONDS:
        return ""
    seconds = num_pairs * CPU_SECONDS[matcher] * REFERENCE_SPEED / _speed()
    return f", about {duration(seconds)} here"


def _speed() -> float:
    """Floating point operations a second of this process, by a matrix product of 30 ms."""
    side = 768
    matrix = np.ones((side, side), np.float32)
    fastest = float("inf")
    for _ in range(4):  # the first one starts the threads
        start = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / max(fastest, 1e-9)


def duration(seconds: float) -> str:
    """Return seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
