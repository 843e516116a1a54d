"""Is "localized" true? Status against error, on rendered maps with exact truth.

    python -m benchmarks.localization_honesty --matcher sift --maps 2 --photos 12 --queries 6

Of each map: photos of the place by day and by night, with wrong intrinsics that are given as known,
mirrored, of another place of its kind, and textureless. A pose is wrong beyond 0.25 m or 2 degrees,
and wherever the place is not in the map; of "localized" ones fewer than 1 of 200 may be.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.photos.images import read_image
from sfm_matchers.runs.map_build import MapOptions, build
from sfm_matchers.synthetic import KINDS, Camera, make_scene, write_photos

MAX_METRES, MAX_DEGREES = 0.25, 2.0
OTHER_SEED = 1000  # of other places
WRONG_FOCAL_LENGTHS = (0.7, 0.9, 1.1, 1.4)
Truth = pycolmap.Rigid3d | None
Case = tuple[str, np.ndarray, pycolmap.Camera | None, Truth]


def cases(folder: Path, seed: int, kind: str, count: int, camera: Camera) -> Iterator[Case]:
    """Condition, photo, intrinsics that are given, and the true pose, None where there is none."""
    scene = make_scene(seed, kind=kind, texture_size=384)
    other = make_scene(OTHER_SEED + seed, kind=kind, texture_size=384)
    for condition, place, night in (
        ("day", scene, False),
        ("night", scene, True),
        ("another place", other, False),
    ):
        where = folder / condition
        truth = write_photos(where, place, count, 2, camera=camera, night=night)
        for index, image in enumerate(truth.images.values()):
            photo = read_image(where / "images" / image.name)
            pose = None if place is other else image.cam_from_world()
            yield condition, photo, None, pose
            if condition == "day":
                wrong = pycolmap.Camera(image.camera.todict())
                factor = WRONG_FOCAL_LENGTHS[index % len(WRONG_FOCAL_LENGTHS)]
                params = wrong.params.copy()
                params[list(wrong.focal_length_idxs())] *= factor
                wrong.params = params
                yield "wrong intrinsics", photo, wrong, pose
                yield "mirrored", np.ascontiguousarray(photo[:, ::-1]), None, None
    rng = np.random.default_rng(seed)
    for _ in range(count):
        gray = cv2.GaussianBlur(rng.uniform(90, 160, (camera.height, camera.width, 3)), None, 40)
        yield "textureless", gray.astype(np.uint8), None, None


def is_right(found: LocalizedQuery, truth: Truth) -> bool:
    """Whether a pose is within the limits of the true one."""
    if truth is None or found.cam_from_world is None:
        return False
    moved = found.cam_from_world * truth.inverse()
    centres = [pose.inverse().translation for pose in (found.cam_from_world, truth)]
    degrees = np.rad2deg(moved.rotation.angle())
    return bool(np.linalg.norm(centres[0] - centres[1]) <= MAX_METRES and degrees <= MAX_DEGREES)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matcher", default="sift")
    parser.add_argument("--maps", type=int, default=2)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--num_loc", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    camera = Camera.from_field_of_view(*options.size)
    table: dict[str, Counter[str]] = {}
    for index in range(options.maps):
        seed, kind = options.seed + index, sorted(KINDS)[index % len(KINDS)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            scene = make_scene(seed, kind=kind, texture_size=384)
            write_photos(folder, scene, options.photos, 1, camera=camera)
            settings = MapOptions(
                folder / "truth", folder / "images", folder / "map", options.matcher, 6
            )
            build(settings)
            with Localizer(folder / "map", num_loc=options.num_loc) as localizer:
                made = cases(folder, seed, kind, options.queries, camera)
                _count(localizer, made, table, f"{kind} {seed}")
    _print(table, print)


def _count(
    localizer: Localizer, made: Iterator[Case], table: dict[str, Counter[str]], where: str
) -> None:
    for condition, photo, camera, truth in made:
        found = localizer.localize(photo, camera)
        right = is_right(found, truth)
        row = table.setdefault(condition, Counter())
        row[found.status.value] += 1
        if found.status is Status.LOCALIZED and not right:
            row["wrong"] += 1
            print(f"WRONG: {where}, {condition}: {found.num_inliers} inliers, {found.intrinsics}")


def _print(table: dict[str, Counter[str]], write: Callable[[str], None]) -> None:
    statuses = [status.value for status in Status]
    write("| condition | " + " | ".join([*statuses, "localized and wrong"]) + " |")
    write("|---|" + "---:|" * (len(statuses) + 1))
    for condition, row in table.items():
        cells = [str(row[column]) for column in [*statuses, "wrong"]]
        write(f"| {condition} | " + " | ".join(cells) + " |")
    localized = sum(row[Status.LOCALIZED.value] for row in table.values())
    write(f"{sum(row['wrong'] for row in table.values())} of {localized} localized are wrong")


if __name__ == "__main__":
    main()
