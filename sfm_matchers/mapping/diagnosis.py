"""Why a model is missing, in several parts, or without some of the photos.

What a run has left on disk tells where photos were lost: they have no keypoints, no matches,
matches that no geometry explains, or verified matches that nothing can begin or go on with.
`explain` says which it was for the run, `likely_reason` for one photo. The summary, the report and
the log of a run all take it from here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from sfm_matchers.errors import InputError, listed
from sfm_matchers.files.colmap_database import read_image_ids
from sfm_matchers.files.names import in_natural_order
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.mapping.groups import connected_groups
from sfm_matchers.mapping.turning import rotations
from sfm_matchers.photos.images import read_image
from sfm_matchers.photos.masks import usable_pixels

logger = logging.getLogger(__name__)

MAX_LOOKED_AT = 20  # photos that are read again, pairs whose geometry is looked at

# Of 255 levels, and of all pixels that may be used.
DARK, BRIGHT, BLANK = 40, 225, 8
MIN_USABLE = 0.02
# Standard deviation of the Laplacian (of Gaussian, which noise hardly counts in) as a share of that
# of the levels. Sharp photos have 0.04 and more; blurred by 6 pixels of 1024, less than 0.01.
BLURRED = 0.02
LOOKED_AT_SIZE = 1024  # pixels of the longer side
TINY = 200  # pixels of the longer side, in which hardly a front-end finds what others show too

# A homography is that of a camera that only turns if it becomes a rotation up to so much.
NEARLY_A_ROTATION = 0.03
TURNED_PIXELS = 2  # of a panorama: what its matches are off if the camera only turns
ONLY_TURNED = "the camera only turned"


@dataclass(frozen=True)
class MatchGraph:
    """Images as nodes, pairs as edges; an image is its row in `names`."""

    names: list[str]
    num_keypoints: np.ndarray  # (N,) int
    edges: np.ndarray  # (P, 2) int, rows of `names`
    matches: np.ndarray  # (P,) int, before verification
    verified: np.ndarray  # (P,) int
    database_path: Path
    image_ids: dict[str, int]  # by name, in the database

    def pairs_of(self, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the other images of an image's pairs; the matches and verified ones of each."""
        mine = (self.edges == image).any(axis=1)
        return self.edges[mine].sum(axis=1) - image, self.matches[mine], self.verified[mine]

    def groups(self) -> list[list[str]]:
        """Return the names connected by verified matches, the largest group first."""
        alone = [(row, row) for row in range(len(self.names))]
        joined = connected_groups([*alone, *self.edges[self.verified > 0].tolist()])
        groups = [[self.names[row] for row in sorted(group)] for group in joined]
        return sorted(groups, key=lambda group: (-len(group), group))


def read_match_graph(
    database_path: Path, pairs: Sequence[Pair], model: pycolmap.Reconstruction | None
) -> MatchGraph:
    """Read a database; photos of `pairs` and of the model that are not in it are nodes too.

    Raises:
        InputError: there is no such database.
    """
    if not database_path.exists():  # pycolmap would create an empty one
        raise InputError(f"{database_path} does not exist: import the matches before the report")
    with pycolmap.Database.open(str(database_path)) as database:
        image_ids = read_image_ids(database)
        name_of = {image_id: name for name, image_id in image_ids.items()}
        keypoints_of = {
            name: database.num_keypoints_for_image(image_id) for name, image_id in image_ids.items()
        }
        raw = _counts_by_pair(*database.read_num_matches(), name_of)
        verified = _counts_by_pair(*database.read_two_view_geometry_num_inliers(), name_of)

    names = set(image_ids) | {name for pair in pairs for name in pair}
    if model is not None:
        names |= {image.name for image in model.images.values()}
    ordered = in_natural_order(names)
    row_of = {name: row for row, name in enumerate(ordered)}
    every_pair = (
        {frozenset(pair) for pair in pairs if pair[0] != pair[1]} | set(raw) | set(verified)
    )
    edges = sorted(sorted(row_of[name] for name in pair) for pair in every_pair)
    keys = [frozenset((ordered[a], ordered[b])) for a, b in edges]
    return MatchGraph(
        names=ordered,
        num_keypoints=np.array([keypoints_of.get(name, 0) for name in ordered], dtype=np.int64),
        edges=np.array(edges, dtype=np.int64).reshape(-1, 2),
        matches=np.array([raw.get(key, 0) for key in keys], dtype=np.int64),
        verified=np.array([verified.get(key, 0) for key in keys], dtype=np.int64),
        database_path=database_path,
        image_ids=image_ids,
    )


def _counts_by_pair(
    pair_ids: Sequence[int], counts: Sequence[int], name_of: Mapping[int, str]
) -> dict[frozenset[str], int]:
    id_pairs = (pycolmap.pair_id_to_image_pair(pair_id) for pair_id in pair_ids)
    keys = (frozenset((name_of[id0], name_of[id1])) for id0, id1 in id_pairs)
    return dict(zip(keys, counts, strict=True))


def poor_photos(graph: MatchGraph, image_dir: Path, mask_dir: Path | None = None) -> dict[str, str]:
    """Return the photos with too few keypoints to be verified with any other, and what they are.

    Args:
        graph: of the run.
        image_dir: the photos.
        mask_dir: their masks.

    Returns:
        Name -> ``dark``, ``blurred`` and so on, "" where nothing is seen that explains it; of the
        first `MAX_LOOKED_AT`, the photos are not read again for the others.
    """
    needed = pycolmap.TwoViewGeometryOptions().min_num_inliers
    poor = [graph.names[row] for row in np.flatnonzero(graph.num_keypoints < needed)]
    faults = {name: fault_of_photo(image_dir, name, mask_dir) for name in poor[:MAX_LOOKED_AT]}
    return {name: faults.get(name, "") for name in poor}


def fault_of_photo(image_dir: Path, name: str, mask_dir: Path | None = None) -> str:
    """Return why a photo may have no keypoints, in a word, or "" where it looks like any other."""
    try:
        image = read_image(Path(image_dir) / name, gray=True)
        usable = usable_pixels(image_dir, name, mask_dir, (image.shape[1], image.shape[0]))
    except InputError:
        return ""
    if usable is not None and usable.mean() < MIN_USABLE:
        return "masked, or transparent, all over" if mask_dir else "transparent all over"
    if max(image.shape) < TINY:
        return "tiny"
    step = -(-max(image.shape) // LOOKED_AT_SIZE)  # all pixels of a large photo take gigabytes
    few = image[::step, ::step]
    levels = few if usable is None else few[usable[::step, ::step]]
    if not levels.size:
        return ""
    low, high = np.percentile(levels, (1, 99))
    if high < DARK:
        return "dark"
    if low > BRIGHT:
        return "overexposed"
    if high - low < BLANK:
        return "blank"
    shrink = min(1.0, LOOKED_AT_SIZE / max(image.shape))
    size = [max(1, round(shrink * side)) for side in image.shape[::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    smooth = cv2.GaussianBlur(image.astype(np.float32), None, 1)  # type: ignore[call-overload]
    if cv2.Laplacian(smooth, cv2.CV_32F).std() < BLURRED * levels.std():
        return "blurred"
    return "mostly masked" if usable is not None and usable.mean() < 0.2 else ""


def likely_reason(
    image: int,
    graph: MatchGraph,
    registered: np.ndarray,
    faults: Mapping[str, str] | None = None,
) -> str:
    """Say why an image was not registered.

    Args:
        image: its row in the graph.
        graph: of the run.
        registered: (N,) bool, which images are.
        faults: from `poor_photos`.
    """
    others, raw, verified = graph.pairs_of(image)
    fault = (faults or {}).get(graph.names[image], "")
    seen = f": the photo is {fault}" if fault else ""
    if graph.num_keypoints[image] == 0 and not verified.any():
        return ("no keypoints" if len(others) else "no keypoints, and in no pair") + seen
    if len(others) == 0:
        return "in no pair: it was never matched"
    if not raw.any() and not verified.any():
        few = f", of {count(int(graph.num_keypoints[image]), 'keypoint')}{seen}" if seen else ""
        return f"no matches in any of its {count(len(others), 'pair')}{few}"
    if not verified.any():
        return (
            f"none of its {count(len(others), 'pair')} passed geometric verification, the best has "
            f"{count(int(raw.max()), 'match', 'matches')}{seen}"
        )
    best = f"its best pair has {count(int(verified.max()), 'verified match', 'verified matches')}"
    if not registered.any():
        return f"no model was built; {best}"
    in_model = registered[others] & (verified > 0)
    if not in_model.any():
        return f"verified pairs lead only to photos that are not registered either; {best}"
    return _why_no_pose(int(verified[in_model].max()))


def _why_no_pose(most: int) -> str:
    """Why a photo has no pose whose strongest pair with a registered one has so many matches."""
    needed = pycolmap.IncrementalMapperOptions().abs_pose_min_num_inliers
    if most < needed:
        return (
            f"at most {count(most, 'verified match', 'verified matches')} with a registered "
            f"photo; a pose needs {needed} that see 3D points"
        )
    return (
        f"{most} verified matches with a registered photo, but no pose agreed with enough of "
        "the 3D points (repeated structure, wrong intrinsics, or few long tracks)"
    )


@dataclass(frozen=True)
class Cause:
    """Why there is no model.

    Attributes:
        what: in some words.
        remedy: what to do; "" where it is matches that lack, which the run's options may bring.
    """

    what: str
    remedy: str = ""


NO_KEYPOINTS = Cause("too few keypoints")
FEW_MATCHES = Cause("too few matches")
UNEXPLAINED = Cause(
    "no geometry explains the matches", "are the photos of one place, and --camera_model theirs?"
)
FEW_VERIFIED = Cause("too few verified matches")
TURNED = Cause(ONLY_TURNED, "walk sideways between photos instead of turning on the spot")
FLAT = Cause(
    "all matches lie in one plane",
    "photograph something beside it too, or give known intrinsics (--camera_params)",
)
NEAR = Cause("too little parallax", "walk further between photos")
INTRINSICS = Cause(
    "the intrinsics may be wrong",
    "give --camera_model or --camera_params, or check those that are given, or leave them away",
)


@dataclass(frozen=True)
class Explanation:
    """What keeps a run from a model of all its photos; all is empty where nothing does.

    Attributes:
        reason: why there is no model, or why photos are not in it, in one line.
        details: lines about photos and groups of them.
        cause: of there being no model; None if there is one.
    """

    reason: str = ""
    details: tuple[str, ...] = ()
    cause: Cause | None = None


def explain(
    graph: MatchGraph,
    models: Sequence[pycolmap.Reconstruction],
    faults: Mapping[str, str] | None = None,
    hint: str = "",
) -> Explanation:
    """Say what keeps a run from a model of all its photos.

    Args:
        graph: of the run.
        models: what came out, the largest first.
        faults: from `poor_photos`.
        hint: what is known of the photos beforehand and may be the reason where there are matches,
            such as that they look like panoramas.
    """
    faults = faults or {}
    registered = {image.name for image in models[0].images.values()} if models else set()
    missing = [name for name in graph.names if name not in registered]
    if not missing:
        return Explanation()
    groups = graph.groups()
    details = [*_about_poor_photos(graph, faults), *_about_groups(graph, groups, faults)]
    if not models:
        why, cause = _why_no_model(graph, faults)
        if hint and cause is not NO_KEYPOINTS:
            why, cause = f"{why}; {hint}", Cause(cause.what, hint)
        return Explanation(f"no model: {why}", tuple(details), cause)
    reason = (
        f"{len(missing)} of {len(graph.names)} photos are not in the model: "
        f"{_weakest_link(graph, registered, models, hint)}"
    )
    return Explanation(reason, tuple(details))


def _about_poor_photos(graph: MatchGraph, faults: Mapping[str, str]) -> list[str]:
    """A line each about photos without keypoints, and about those with too few."""
    row_of = {name: row for row, name in enumerate(graph.names)}
    without: list[str] = []
    few: list[str] = []
    for name, fault in faults.items():
        found = int(graph.num_keypoints[row_of[name]])
        notes = [str(found)] * (found > 0) + [fault] * bool(fault)
        text = f"{name} ({', '.join(notes)})" if notes else name
        (few if found else without).append(text)
    lines = []
    if without:
        lines.append(f"{len(without)} photo(s) have no keypoints: {listed(without)}")
    if few:
        lines.append(f"{len(few)} photo(s) have too few keypoints to match: {listed(few)}")
    return lines


def _about_groups(
    graph: MatchGraph, groups: Sequence[Sequence[str]], faults: Mapping[str, str]
) -> list[str]:
    """A line about photos that match no other, and one about groups of those that do."""
    lonely = [group[0] for group in groups if len(group) == 1 and group[0] not in faults]
    connected = [group for group in groups if len(group) > 1]
    lines = []
    if lonely:
        nobody = np.zeros(len(graph.names), dtype=bool)
        row_of = {name: row for row, name in enumerate(graph.names)}
        reason = Counter(likely_reason(row_of[name], graph, nobody) for name in lonely)
        lines.append(
            f"{len(lonely)} photo(s) match no other photo: {listed(lonely)}: "
            f"{reason.most_common(1)[0][0]}"
        )
    if len(connected) > 1:
        sizes = "; ".join(f"{len(group)} photos ({listed(group)})" for group in connected)
        lines.append(
            f"the photos fall into {len(connected)} groups without verified matches between them: "
            f"{sizes}: {_why_apart(graph, set(connected[0]), set(connected[1]))}"
        )
    return lines


def _why_apart(graph: MatchGraph, first: set[str], second: set[str]) -> str:
    """What lies between two groups without verified matches."""
    between = [
        index
        for index, (a, b) in enumerate(graph.edges.tolist())
        if {graph.names[a] in first, graph.names[b] in first} == {True, False}
        and {graph.names[a] in second, graph.names[b] in second} == {True, False}
    ]
    if not between:
        return "no pair of photos from both was matched: match more pairs (--pairs exhaustive)"
    most = count(int(graph.matches[between].max()), "match", "matches")
    return (
        f"between the first two the best pair has {most}, none verified: they show different "
        "places, or photos are missing between them"
    )


def _why_no_model(graph: MatchGraph, faults: Mapping[str, str]) -> tuple[str, Cause]:
    unverified = "no two photos have enough verified matches"
    if len(graph.names) - len(faults) < 2:
        kinds = [
            kind for kind, _ in Counter(fault for fault in faults.values() if fault).most_common(3)
        ]
        seen = f" ({', '.join(kinds)})" if kinds else ""
        why = f"{len(faults)} of {len(graph.names)} photos have no keypoints{seen}"
        return f"{unverified}: {why}", NO_KEYPOINTS
    needed = pycolmap.TwoViewGeometryOptions().min_num_inliers
    most = int(graph.matches.max(initial=0))
    if graph.verified.any():
        why, cause = _why_no_start(graph)
        start = "no pair of photos with verified matches was good enough to start from"
        return f"{start}: {why}", cause
    if most < needed:
        return (
            f"{unverified}: no pair has more than {count(most, 'match', 'matches')} before "
            f"verification, {needed} are needed: the photos matched do not overlap, or need "
            "another matcher (--matcher)"
        ), FEW_MATCHES
    first, second = graph.edges[int(graph.matches.argmax())]
    return (
        f"{unverified}: the best pair, {graph.names[first]} and {graph.names[second]}, has "
        f"{most} matches, but no two-view geometry explains enough of them: "
        f"{UNEXPLAINED.remedy}"
    ), UNEXPLAINED


def _why_no_start(graph: MatchGraph) -> tuple[str, Cause]:
    """What is wrong with the strongest verified pairs as the first two photos of a model."""
    wanted = pycolmap.IncrementalMapperOptions().init_min_num_inliers
    needed = wanted // 2  # where the mapper gives up
    most = int(graph.verified.max())
    too_few = (
        f"the best has {count(most, 'verified match', 'verified matches')}, {wanted} are wanted: "
        "photos with more overlap, or another --matcher, may help"
    )
    if most < needed:
        return too_few, FEW_VERIFIED
    strongest = np.argsort(graph.verified)[::-1][:MAX_LOOKED_AT]
    strongest = strongest[graph.verified[strongest] >= needed]
    kinds, angles = _kinds_of_pairs(graph, strongest)
    kind, number = Counter(kinds).most_common(1)[0]
    of = f"in {number} of the {len(kinds)} strongest pairs"
    if kind == "rotation" and number > len(kinds) / 2:
        return f"{of} {TURNED.what}: {TURNED.remedy}", TURNED
    if kind == "plane" and number > len(kinds) / 2:
        return f"{of} {FLAT.what}: {FLAT.remedy}", FLAT
    best = max((angle for angle in angles if np.isfinite(angle)), default=0.0)
    enough = pycolmap.IncrementalMapperOptions().init_min_tri_angle
    if best < enough:
        return (
            f"{NEAR.what}, at most {best:.1f} degrees between two rays to a point, "
            f"{enough:.0f} are wanted: {NEAR.remedy}"
        ), NEAR
    if most < wanted:
        return too_few, FEW_VERIFIED
    return (
        f"the strongest pair has {most} verified matches and the parallax is {best:.0f} degrees, "
        f"so {INTRINSICS.what}: {INTRINSICS.remedy}"
    ), INTRINSICS


def _kinds_of_pairs(graph: MatchGraph, pairs: np.ndarray) -> tuple[list[str], list[float]]:
    """Return `_kind_of_pair` of some rows of the graph's edges."""
    kinds, angles = [], []
    with pycolmap.Database.open(str(graph.database_path)) as database:
        cameras = {image.image_id: image.camera_id for image in database.read_all_images()}
        for row0, row1 in graph.edges[pairs].tolist():
            ids = graph.image_ids[graph.names[row0]], graph.image_ids[graph.names[row1]]
            both = tuple(database.read_camera(cameras[image_id]) for image_id in ids)
            points = tuple(database.read_keypoints(image_id)[:, :2] for image_id in ids)
            kind, angle = _kind_of_pair(both, points, database.read_two_view_geometry(*ids))
            kinds.append(kind)
            angles.append(angle)
    return kinds, angles


def _kind_of_pair(
    cameras: tuple[pycolmap.Camera, ...],
    points: tuple[np.ndarray, ...],
    geometry: pycolmap.TwoViewGeometry,
) -> tuple[str, float]:
    """Return ``rotation``, ``plane`` or ``depth``, and the median angle between rays in degrees."""
    kinds = pycolmap.TwoViewGeometryConfiguration
    flat = (kinds.PLANAR, kinds.PANORAMIC, kinds.PLANAR_OR_PANORAMIC)
    if geometry.config == kinds.CALIBRATED and geometry.E is None:  # of `mapping.write_inliers`
        options = pycolmap.TwoViewGeometryOptions()
        options.ransac.random_seed = 0
        geometry = pycolmap.estimate_calibrated_two_view_geometry(
            cameras[0], points[0], cameras[1], points[1], geometry.inlier_matches, options
        )
        if geometry.config in (kinds.UNDEFINED, kinds.DEGENERATE):
            return "depth", 0.0
    if geometry.config in flat:
        if any(camera.is_spherical() for camera in cameras):
            only_turned = _rays_only_turn(cameras, points, geometry.inlier_matches)
        else:
            only_turned = is_rotation(geometry.H, cameras)
        if geometry.config == kinds.PANORAMIC or only_turned:
            return "rotation", 0.0
        return "plane", float("nan")
    pycolmap.estimate_two_view_geometry_pose(cameras[0], points[0], cameras[1], points[1], geometry)
    return "depth", float(np.degrees(max(0.0, geometry.tri_angle)))  # -1: no point has one


def _rays_only_turn(
    cameras: Sequence[pycolmap.Camera], points: Sequence[np.ndarray], matches: np.ndarray
) -> bool:
    """Return whether one rotation takes the rays of a pair's matches to each other."""
    first, second = (
        np.asarray(camera.cam_ray_from_img(xy[matches[:, side]]))
        for side, (camera, xy) in enumerate(zip(cameras, points, strict=True))
    )
    (turn,) = rotations(first[None], second[None], np.ones((1, len(first))))
    angles = np.linalg.norm(first @ turn.T - second, axis=1)
    return float(np.median(angles)) < TURNED_PIXELS * 2 * np.pi / max(c.width for c in cameras)


def is_rotation(homography: np.ndarray | None, cameras: Sequence[pycolmap.Camera]) -> bool:
    """Return whether a homography is that of cameras that only turned, of some focal length.

    Args:
        homography: (3, 3) from pixels of the first to pixels of the second image.
        cameras: the two; only their principal points and sizes are looked at.
    """
    if homography is None or not np.isfinite(homography).all():
        return False
    least = np.inf
    sides = [max(camera.width, camera.height) for camera in cameras]
    for share in np.geomspace(0.3, 4, 60):
        first, second = (
            np.array([[share * side, 0, x], [0, share * side, y], [0, 0, 1.0]])
            for side, (x, y) in zip(
                sides,
                [(camera.principal_point_x, camera.principal_point_y) for camera in cameras],
                strict=True,
            )
        )
        turn = np.linalg.inv(second) @ homography @ first
        turn = turn / np.cbrt(np.linalg.det(turn))
        least = min(least, float(np.linalg.norm(turn @ turn.T - np.eye(3))))
    return least < NEARLY_A_ROTATION


def _weakest_link(
    graph: MatchGraph,
    registered: set[str],
    models: Sequence[pycolmap.Reconstruction],
    hint: str,
) -> str:
    """What connects the registered photos with the others, and what to try."""
    inside = np.array([name in registered for name in graph.names])
    crossing = inside[graph.edges].sum(axis=1) == 1
    verified = np.where(crossing, graph.verified, 0)
    elsewhere = ""
    if len(models) > 1:
        elsewhere = f"{sum(model.num_reg_images() for model in models[1:])} are in further models, "
    if not verified.any():
        return f"{elsewhere}no verified matches connect them with it"
    best = int(verified.argmax())
    first, second = (graph.names[row] for row in graph.edges[best])
    return (
        f"{elsewhere}the strongest link is {first} and {second}, "
        f"{_why_no_pose(int(verified[best]))}: photos between them, more pairs (--pairs), or "
        f"another --matcher may help{f'; {hint}' if hint else ''}"
    )


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 photo``, ``2,000 photos``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
