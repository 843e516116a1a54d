"""Make a map that is ready for new photos, in one folder that can be copied without its photos.

    python -m pipelines.map build OUT_OR_MODEL --images PHOTOS --output MAP
    python -m pipelines.map check MAP
    python -m pipelines.localize --map MAP --queries NEW_PHOTOS --outputs OUT

OUT is of `sfm-matchers sfm`, whose features are taken where it had the same matcher; MODEL is any
COLMAP model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.command import run_command, run_guarded, say
from pipelines.options import Parser, add_matching_options, program, take_defaults
from sfm_matchers.runs.options import MapOptions


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("map"), description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | check")
    building = commands.add_parser("build", help="make a map, or complete one")
    add = building.add_argument
    add("model", type=Path, metavar="OUT_OR_MODEL", help="outputs of sfm-matchers sfm, or a model")
    add("--images", type=Path, required=True, help="folder its names are relative to")
    add("--output", type=Path, required=True, metavar="MAP", help="folder of the map")
    add(
        "--num_covis",
        type=int,
        help="photos of the map that each is matched with (default: %(default)s)",
    )
    add("--mask_dir", type=Path, help="the masks that sfm-matchers sfm was given")
    add_matching_options(add)
    take_defaults(building, MapOptions)
    checking = commands.add_parser("check", help="look whether a map was copied as a whole")
    checking.add_argument("map", type=Path, metavar="MAP")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if it went to the end, 2 for bad input."""
    given = build_parser().parse(arguments)
    if given.pop("command") == "check":
        return run_guarded(lambda: _check(given["map"]))
    return run_command(given["output"], lambda: _build(given), name="map build")


def _check(path: Path) -> int:
    from sfm_matchers.localization.map_folder import check, read_settings

    settings = read_settings(path)
    check(path, settings)
    say(f"{path}: complete, {len(settings.files)} files")
    return 0


def _build(given: dict[str, object]) -> int:
    from sfm_matchers.machine.memory import peak_memory
    from sfm_matchers.runs.map_build import build

    settings = build(MapOptions(**given))  # type: ignore[arg-type]
    megabytes = sum(file["bytes"] for file in settings.files.values()) / 1e6
    say(f"map: {given['output']} ({megabytes:.1f} MB)")
    say(f"photos: {settings.num_photos}")
    say(f"points: {settings.num_points}")
    say(f"matcher: {settings.matcher}")
    say(f"memory: {peak_memory():.2f} GB at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
