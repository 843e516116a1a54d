"""A folder of photos to a COLMAP model.

    python -m pipelines.sfm --image_dir PHOTOS --outputs OUT --matcher sift

Every step leaves a file in OUT, in hloc's layout; a second run does only what is missing or has
changed:

    frames                        photos out of a video, where --image_dir is one
    photos.json                   which photos can be decoded, and a hash of their content
    pairs-*.txt                   pairs of photos to match
    feats-*.h5                    keypoints (and descriptors)
    matches-*.h5                  matches between keypoints
    correspondences-*.h5          detector-free matches before they were turned into keypoints
    database.db                   COLMAP database with verified matches
    look_alikes.json              pairs that seem to show two places
    sparse/0, sparse/1, ...       COLMAP models, the largest first
    georeferenced                 the largest one in metres, where its place is known
    report.html, *.png            what came out, to look at
    exports.json, ...             what --export adds for other tools
    log.txt                       each run: versions, options, what was said
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command import run_command, say
from pipelines.options import Add, Parser, add_matching_options, program, take_defaults
from sfm_matchers.choices import CAMERA_MODES, MAPPERS, POLICIES, QUALITIES
from sfm_matchers.runs.options import AUTO_MATCHERS, MAPPED_WITH, SfmOptions

if TYPE_CHECKING:
    from sfm_matchers.runs.results import SfmResult


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("sfm"), description=__doc__)
    add = parser.add_argument
    add(
        "--image_dir",
        type=Path,
        required=True,
        help="folder of photos, searched recursively; or a video (needs the extra video)",
    )
    add("--outputs", type=Path, required=True, help="folder for all results; made if missing")
    add(
        "--frames",
        type=int,
        metavar="N",
        help="of a video, how many photos are taken out of it: sharp ones, evenly spaced in what "
        "the picture moves, into OUTPUTS/frames (default: one for each tenth of its longer side, "
        "so that neighbours share nine tenths; 300 at most, some 5,000 pairs)",
    )
    first, second = AUTO_MATCHERS
    add_matching_options(
        add, shards=True, auto=f"{first}, then {second} for the photos that it leaves out"
    )
    _add_extraction_and_pairs(add)
    _add_mapping(add)
    _add_cameras_and_places(add)
    _add_results(add)
    take_defaults(parser, SfmOptions)
    return parser


def _add_extraction_and_pairs(add: Add) -> None:
    add(
        "--quality",
        type=str.lower,
        choices=QUALITIES,
        help="size of the photos and number of keypoints: with sift those of COLMAP (1000, 1600, "
        "2400, 3200 px), with others in the same proportions, medium being the size of the conf "
        "(default: the conf's)",
    )
    add(
        "--max_image_size",
        type=int,
        metavar="PIXELS",
        help="photos are matched reduced to this longer side (default: the conf's)",
    )
    add(
        "--max_num_features",
        type=int,
        metavar="N",
        help="most keypoints of a photo (default: the conf's)",
    )
    add(
        "--pairs",
        metavar="|".join([*POLICIES, "FILE"]),
        help="which photos to match: all with all where that is minutes, else each with the most "
        "similar ones, the next ones by time or name and the nearest ones by GPS; all with all; "
        "each with the next ones by name; with the most similar ones; with the nearest ones; or a "
        "text file with two names a line (default: %(default)s)",
    )
    add(
        "--num_matched",
        type=int,
        help="photos matched to each photo by all but exhaustive (default: %(default)s)",
    )


def _add_mapping(add: Add) -> None:
    add("--mapper", choices=MAPPERS, help="default: %(default)s")
    add(
        "--mapper_threads",
        type=int,
        help="threads of the mapper; 1 gives the same model every time, more (-1: all cores) are "
        "faster for hundreds of photos (default: %(default)s)",
    )


def _add_cameras_and_places(add: Add) -> None:
    add(
        "--camera_mode",
        choices=CAMERA_MODES,
        help="which photos share a camera; auto decides from EXIF and sizes (default: %(default)s)",
    )
    add(
        "--camera_model",
        help="COLMAP's name, such as OPENCV_FISHEYE for fisheye lenses or EQUIRECTANGULAR for "
        f"panoramas of 360 degrees; auto maps with {MAPPED_WITH} and then chooses by the error of "
        "held-out observations (default: %(default)s)",
    )
    add(
        "--camera_params",
        help="known intrinsics in COLMAP's order, comma-separated, in pixels; they are kept as "
        "they are (default: from EXIF, and refined)",
    )
    add(
        "--cameras",
        type=Path,
        metavar="FILE",
        help="intrinsics of photos by folder or name: lines 'PATTERN MODEL PARAMS [fixed|start]', "
        "such as 'left/* OPENCV 900,900,640,360,0,0,0,0 fixed'; start: refined from there",
    )
    add(
        "--mask_dir",
        type=Path,
        help="masks, whose black pixels are ignored: a folder with one for each photo, called "
        "a.jpg.png or a.png for a.jpg, or a file, the mask of every photo. Transparent parts of "
        "photos are ignored without one",
    )
    add(
        "--georeference",
        metavar="none|exif|FILE",
        help="a model in metres, east, north and up, beside the other, in OUTPUTS/georeferenced: "
        "by GPS in EXIF where enough photos have it; by a table of positions (name,lat,lon,alt or "
        "name,x,y,z); or by ground control points as in OpenDroneMap's gcp_list.txt "
        "(default: %(default)s)",
    )


def _add_results(add: Add) -> None:
    add(
        "--drop_raw_matches",
        action="store_true",
        help="delete correspondences-*.h5 of a detector-free matcher, 30 kB a pair, when keypoints "
        "are made of them; if pairs are added later, all are matched again",
    )
    add(
        "--export",
        metavar="FORMAT,...",
        help="also write the model for other tools into OUTPUTS: nerfstudio, gsplat, undistorted "
        "(for Inria's 3DGS), ply",
    )
    add(
        "--keep_all_pairs",
        action="store_true",
        help="map all verified pairs; otherwise those that seem to show two places that look alike "
        "(opposite sides of a building, twin towers) are left out, and told",
    )
    add(
        "--no_longer_tracks",
        action="store_true",
        help="keep the tracks that matching gave; otherwise each point is looked for in all photos "
        "that should show it, by least squares matching, and the model is adjusted again",
    )
    add(
        "--no_refine",
        action="store_true",
        help="leave the mapper's model as it is: no robust adjustment, no choice of camera models, "
        "no longer tracks, no joining of models; pairs that show two places are told, not left out",
    )
    add("--overwrite", action="store_true", help="delete the results in OUTPUTS and start afresh")


def print_summary(result: SfmResult) -> None:
    """Print the summary, one fact a line."""
    lines = {key: value for key, value in result.summary.items() if not isinstance(value, dict)}
    verdict = lines.pop("verdict")
    lines.pop("verdict_level")
    lines |= result.summary["settings"]
    lines |= {f"seconds, {name}": value for name, value in result.summary["seconds"].items()}
    exports = result.summary.get("exports", {})
    lines |= {f"export, {name}": value for name, value in exports.items()}
    lines["report"] = result.report if result.report.exists() else "none, see above"
    lines["verdict"] = verdict  # the last line is what is read first
    width = max(map(len, lines))
    say("\n".join(f"{key:<{width}}  {value}" for key, value in lines.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if a model came out, 1 if none did, 2 for bad input."""
    options = SfmOptions(**build_parser().parse(arguments))
    beginnings = chain([options], repeat(replace(options, overwrite=False)))  # delete once only

    def job() -> int:
        from sfm_matchers.runs.reconstruct import run, run_shard

        current = next(beginnings)
        if current.shard is not None:
            run_shard(current)
            say(f"shard {current.shard} is done; after all others, run with --merge")
            return 0
        result = run(current)
        print_summary(result)
        return 0 if result.models else 1

    return run_command(Path(options.outputs), job, options.shard, name="sfm", options=options)


if __name__ == "__main__":
    sys.exit(main())
