"""Is "localized" true? Status against error, on rendered maps with exact truth.

    python -m benchmarks.localization_honesty --matcher sift --maps 4 --photos 12 --queries 6

Of each map: photos of the place by day and by night, turned, upright (portrait), through a fisheye,
with wrong intrinsics that are given as known, mirrored, of another place of its kind, and
textureless; and by day in the same map in other units, and far from the origin. A pose is wrong
beyond 0.25 m or 2 degrees, and wherever the place is not in the map; of "localized" ones fewer than
1 of 200 may be. Matchers without a detector have the photos of the map, the others a map that needs
none.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.localization import map_folder
from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.mapping.models import write_model
from sfm_matchers.photos.images import read_image
from sfm_matchers.runs.localize import localize
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import MapOptions
from sfm_matchers.synthetic import KINDS, Camera, make_scene, write_photos

MAX_METRES, MAX_DEGREES = 0.25, 2.0
NUM_COVIS = 6  # photos of the map that each of them is matched with
OTHER_SEED = 1000  # of other places
# Scale of the map, and how far it is from the origin.
UNITS = {"kilometres": (1e-3, 0.0), "10 micrometres": (1e5, 0.0), "far away": (1.0, 5e5)}
WRONG_FOCAL_LENGTHS = {
    "wrong focal length": (0.7, 0.9, 1.1, 1.4),
    "inexact focal length": (0.95, 1.03, 0.98, 1.05),
}
# Of the fisheye, and of the pinhole camera that its photos are made of: degrees across.
FISHEYE_VIEW, WIDE_VIEW = 100.0, 125.0
QUARTER = pycolmap.Rigid3d(  # counter-clockwise
    pycolmap.Rotation3d(np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])), np.zeros(3)
)
Truth = pycolmap.Rigid3d | None
Case = tuple[str, np.ndarray, pycolmap.Camera | None, Truth]


def cases(folder: Path, seed: int, kind: str, count: int, camera: Camera) -> Iterator[Case]:
    """Condition, photo, intrinsics that are given, and the true pose, None where there is none."""
    scene = make_scene(seed, kind=kind, texture_size=384)
    other = make_scene(OTHER_SEED + seed, kind=kind, texture_size=384)
    wide = Camera.from_field_of_view(2 * camera.width, 2 * camera.height, WIDE_VIEW)
    portrait = Camera(camera.height, camera.width, camera.fx, camera.fy, camera.cy, camera.cx)
    for condition, place, lens, night in (
        ("day", scene, camera, False),
        ("night", scene, camera, True),
        ("portrait", scene, portrait, False),
        ("fisheye", scene, wide, False),
        ("another place", other, camera, False),
    ):
        where = folder / condition
        truth = write_photos(where, place, count, 2, camera=lens, night=night)
        for index, image in enumerate(truth.images.values()):
            photo = read_image(where / "images" / image.name)
            pose = None if place is other else image.cam_from_world()
            if condition == "fisheye":
                photo = fisheye(photo, wide, camera)
            yield condition, photo, None, pose
            if condition == "day":
                for name, factors in WRONG_FOCAL_LENGTHS.items():
                    yield name, photo, zoomed(image.camera, factors[index % len(factors)]), pose
                yield "turned by 90 degrees", np.rot90(photo).copy(), None, QUARTER * pose
                yield "mirrored", np.ascontiguousarray(photo[:, ::-1]), None, None
    rng = np.random.default_rng(seed)
    for _ in range(count):
        gray = cv2.GaussianBlur(rng.uniform(90, 160, (camera.height, camera.width, 3)), None, 40)
        yield "textureless", gray.astype(np.uint8), None, None


def zoomed(camera: pycolmap.Camera, factor: float) -> pycolmap.Camera:
    """The same camera with another focal length."""
    wrong = pycolmap.Camera(camera.todict())
    params = wrong.params.copy()
    params[list(wrong.focal_length_idxs())] *= factor
    wrong.params = params
    return wrong


def fisheye(photo: np.ndarray, wide: Camera, camera: Camera) -> np.ndarray:
    """What an equidistant fisheye of the size of `camera` sees, made of a photo of wide view."""
    focal_length = camera.width / np.deg2rad(FISHEYE_VIEW)
    x, y = np.meshgrid(np.arange(camera.width) - camera.cx, np.arange(camera.height) - camera.cy)
    radius = np.maximum(np.hypot(x, y), 1e-9)
    stretch = wide.fx * np.tan(radius / focal_length) / radius
    maps = (wide.cx + x * stretch).astype(np.float32), (wide.cy + y * stretch).astype(np.float32)
    return cv2.remap(photo, *maps, cv2.INTER_AREA)


@dataclass(frozen=True)
class Outcome:
    """What became of a case; errors are NaN where there is no true pose or none was found."""

    status: Status
    metres: float
    degrees: float

    @property
    def is_wrong(self) -> bool:
        """Localized, and not within the limits of the true pose."""
        right = self.metres <= MAX_METRES and self.degrees <= MAX_DEGREES
        return self.status is Status.LOCALIZED and not right


def outcome(found: LocalizedQuery, truth: Truth, scale: float = 1.0) -> Outcome:
    """Compare a pose with the true one, in a map in which a metre has the length `scale`."""
    if truth is None or found.cam_from_world is None:
        return Outcome(found.status, np.nan, np.nan)
    moved = found.cam_from_world * truth.inverse()
    centres = [pose.inverse().translation for pose in (found.cam_from_world, truth)]
    metres = float(np.linalg.norm(centres[0] - centres[1])) / scale
    return Outcome(found.status, metres, float(np.rad2deg(moved.rotation.angle())))


def transformed_map(folder: Path, output: Path, change: pycolmap.Sim3d) -> Path:
    """The same map in other coordinates."""
    shutil.copytree(folder, output)
    model = pycolmap.Reconstruction(folder / map_folder.MODEL)
    model.transform(change)
    shutil.rmtree(output / map_folder.MODEL)
    write_model(model, output / map_folder.MODEL)
    map_folder.write_settings(output, map_folder.read_settings(folder))
    return output


def by_map(
    folder: Path, matcher: str, every: Sequence[Case], num_loc: int
) -> Iterator[tuple[str, Case, LocalizedQuery]]:
    """Where a case is, the case, and its pose, in maps that need no photos."""
    ready = folder / matcher
    build(MapOptions(folder / "truth", folder / "images", ready, matcher, NUM_COVIS))
    with Localizer(ready, num_loc=num_loc) as localizer:
        for case in every:
            yield "", case, localizer.localize(case[1], case[2])
    for units, change in changes().items():
        other = transformed_map(ready, folder / f"{matcher} {units}", change)
        with Localizer(other, num_loc=num_loc) as localizer:
            for case in every:
                if case[0] == "day":
                    yield units, case, localizer.localize(case[1])


def by_photos(
    folder: Path, matcher: str, every: Sequence[Case], num_loc: int
) -> Iterator[tuple[str, Case, LocalizedQuery]]:
    """The same with the photos of the map, as matchers without a detector need them."""
    queries, cameras = folder / "queries", folder / "cameras.txt"
    queries.mkdir(exist_ok=True)
    lines = []
    for index, (_, photo, given, _) in enumerate(every):
        name = f"{index:04d}.png"
        cv2.imwrite(str(queries / name), photo[..., ::-1])
        if given is not None:
            params = " ".join(str(number) for number in given.params)
            lines.append(f"{name} {given.model.name} {given.width} {given.height} {params}\n")
    cameras.write_text("".join(lines))
    for units, change in {"": pycolmap.Sim3d(), **changes()}.items():
        model = pycolmap.Reconstruction(folder / "truth")
        model.transform(change)
        place = folder / f"truth {units}"
        write_model(model, place)
        found = localize(
            place,
            folder / "images",
            queries,
            folder / f"{matcher} outputs",  # all matches are of the same photos
            matcher=matcher,
            num_covis=NUM_COVIS,
            num_loc=num_loc,
            cameras=cameras,
        )
        for query in found.queries:
            case = every[int(Path(query.name).stem)]
            if not units or case[0] == "day":
                yield units, case, query


def changes() -> dict[str, pycolmap.Sim3d]:
    """From metres to the coordinates of other maps, by their name."""
    return {
        units: pycolmap.Sim3d(scale, pycolmap.Rotation3d(), np.array([offset, -offset, 0.0]))
        for units, (scale, offset) in UNITS.items()
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matcher", nargs="+", default=["sift"], help="one or more")
    parser.add_argument("--maps", type=int, default=4)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--num_loc", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tables: dict[str, dict[str, list[Outcome]]] = {
        matcher: defaultdict(list) for matcher in options.matcher
    }
    for index in range(options.maps):
        seed = options.seed + index
        kind = sorted(KINDS)[seed % len(KINDS)]
        with tempfile.TemporaryDirectory() as name:
            for matcher, condition, result, text in outcomes(Path(name), seed, kind, options):
                tables[matcher][condition].append(result)
                if result.is_wrong:
                    where = f"{matcher}, {kind} {seed}, {condition}"
                    print(f"WRONG: {where}: {result}, {text}", flush=True)
        for matcher, table in tables.items():
            print(f"{matcher}, {index + 1} of {options.maps} maps: {_verdict(table)}", flush=True)
    for matcher, table in tables.items():
        print(matcher)
        _print(table)


def outcomes(
    folder: Path, seed: int, kind: str, options: argparse.Namespace
) -> Iterator[tuple[str, str, Outcome, str]]:
    """Matcher, condition, outcome and a text about it, of all cases of a map."""
    camera = Camera.from_field_of_view(*options.size)
    scene = make_scene(seed, kind=kind, texture_size=384)
    write_photos(folder, scene, options.photos, 1, camera=camera)
    every = list(cases(folder, seed, kind, options.queries, camera))
    for matcher in options.matcher:
        has_detector = isinstance(load_conf(matcher), SparseConf)
        localized = by_map if has_detector else by_photos
        for units, (condition, _, _, truth), found in localized(
            folder, matcher, every, options.num_loc
        ):
            if units and truth is not None:
                truth = changes()[units].transform_camera_world(truth)
            scale = UNITS[units][0] if units else 1.0
            yield matcher, units or condition, outcome(found, truth, scale), _text(found)


def _text(found: LocalizedQuery) -> str:
    return f"{found.num_inliers} inliers, {found.intrinsics}"


def _print(table: dict[str, list[Outcome]]) -> None:
    statuses = list(Status)
    names = " | ".join(status.value for status in statuses)
    print(f"| condition | {names} | localized and wrong | errors of localized: median, largest |")
    print("|---|" + "---:|" * (len(statuses) + 1) + "---|")
    for condition, results in table.items():
        counts = [sum(one.status is status for one in results) for status in statuses]
        cells = [str(count) for count in [*counts, sum(one.is_wrong for one in results)]]
        localized = [one for one in results if one.status is Status.LOCALIZED]
        errors = ""
        if localized:
            metres, degrees = ([one.metres for one in localized], [o.degrees for o in localized])
            errors = (
                f"{np.median(metres):.3f} m, {np.median(degrees):.2f} degrees; "
                f"{np.max(metres):.3f} m, {np.max(degrees):.2f} degrees"
            )
        print(f"| {condition} | {' | '.join(cells)} | {errors} |")
    print(_verdict(table))


def _verdict(table: dict[str, list[Outcome]]) -> str:
    every = [one for results in table.values() for one in results]
    count = sum(one.status is Status.LOCALIZED for one in every)
    wrong = sum(one.is_wrong for one in every)
    return f"{len(every)} cases: {wrong} of {count} localized are wrong"


if __name__ == "__main__":
    main()
