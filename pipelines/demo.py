"""The main jobs on photos of an invented place, compared with the exact truth.

    python -m pipelines.demo --outputs demo

renders photos into OUTPUTS/photos, runs `sfm-matchers sfm` on them and compares the model with the
poses the photos were rendered from; then renders a small data set in the layout of Aachen Day-Night
into OUTPUTS/aachen and runs `sfm-matchers aachen` on it.
"""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipelines.aachen import CONDITIONS
from pipelines.command import run_command, say
from pipelines.localize import print_localization
from pipelines.options import Parser, matcher_name, program
from pipelines.sfm import print_summary
from sfm_matchers.choices import SCENES
from sfm_matchers.runs.options import AachenOptions, SfmOptions, check_least


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if a model came out."""
    parser = Parser(prog=program("demo"), description=__doc__)
    add = parser.add_argument
    add("--outputs", type=Path, default=Path("demo"), help="folder for all results (default: demo)")
    add("--matcher", type=matcher_name, default="sift", help="as in sfm (default: sift)")
    add("--scene", default="courtyard", choices=SCENES, help="default: courtyard")
    add("--count", type=int, default=12, help="number of photos (default: 12)")
    add("--seed", type=int, default=0, help="another seed, another place (default: 0)")
    options = Namespace(**parser.parse(arguments))
    return run_command(options.outputs, lambda: show(options.outputs, options), name="demo")


def show(outputs: Path, options: Namespace) -> int:
    """Make photos, a model of them, and localize others; print what came out."""
    import pycolmap

    from sfm_matchers.evaluation.models import compare_models
    from sfm_matchers.runs.matching import choose_matching
    from sfm_matchers.runs.reconstruct import run
    from sfm_matchers.synthetic import make_scene, write_photos

    check_least("count", options.count, 3)
    check_least("seed", options.seed, 0)
    choose_matching(AachenOptions(outputs / "dataset", outputs / "aachen", options.matcher))
    photos = outputs / "photos"
    if not (photos / "truth" / "images.txt").exists():
        scene = make_scene(options.seed, kind=options.scene)
        write_photos(photos, scene, options.count, options.seed)
    result = run(SfmOptions(photos / "images", outputs, options.matcher))
    print_summary(result)
    say(f"picture of the model       {outputs / 'model.png'}")
    if not result.models:
        return 1
    errors = compare_models(result.models[0], pycolmap.Reconstruction(photos / "truth"))
    say(f"against the exact truth    {errors.summary()}\n")
    localize(outputs / "aachen", options.matcher, options.seed)
    return 0


def localize(outputs: Path, matcher: str, seed: int) -> None:
    """Localize photos by day and by night, and print how many are how exact."""
    from sfm_matchers.evaluation.absolute_poses import recall_table
    from sfm_matchers.localization.poses import read_poses
    from sfm_matchers.runs.benchmarks import localize_aachen
    from sfm_matchers.synthetic import Camera, make_scene
    from sfm_matchers.synthetic.benchmarks import TRUTH, write_aachen

    dataset = outputs / "dataset"
    if not (dataset / TRUTH).exists():
        shutil.rmtree(dataset, ignore_errors=True)
        camera = Camera.from_field_of_view(480, 360)
        scene = make_scene(seed + 1, kind="room")
        write_aachen(dataset, scene, num_database=10, num_day=3, num_night=2, camera=camera)
    result = localize_aachen(AachenOptions(dataset, outputs, matcher, num_covis=5, num_loc=5))
    print_localization(result, CONDITIONS)
    say("against the exact truth")
    say(recall_table(read_poses(result.files["submission"]), read_poses(dataset / TRUTH)))


if __name__ == "__main__":
    sys.exit(main())
