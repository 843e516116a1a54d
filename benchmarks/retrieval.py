"""How well do global descriptors find the photos that show the same place?

    python -m benchmarks.retrieval ../shared/posed --every 3 --without ochota2

Scenes with known overlap (`scene_info/*.npz`, as of `pipelines.train --megadepth_dir`) are mixed:
each photo is a query, all others of all scenes are the map, and right are those of its scene with
enough overlap. VLAD of local features, and the same ranked again by these features, as a map that
is ready does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.localization.map_folder import VladIndex, make_index
from sfm_matchers.pairs.retrieval import mutual_neighbours, ranked_by_votes
from sfm_matchers.photos.images import read_image

FEATURES = {"sift": "sift", "aliked": "aliked+mambaglue"}  # by the conf that has them
COUNTS = (1, 5, 10)
RANKED_AGAIN = 20  # first photos
Overlapping = dict[str, set[str]]


def read_overlaps(folder: Path, every: int, least: float, without: Sequence[str]) -> Overlapping:
    """Photos, relative to a folder, with those that overlap with them; those without are left out.

    Every n-th of each scene, but of some scenes none.
    """
    overlapping: Overlapping = {}
    for path in sorted((folder / "scene_info").glob("*.npz")):
        if path.stem in without:
            continue
        with np.load(path, allow_pickle=True) as scene:
            names, pairs = scene["image_paths"].tolist(), scene["pair_infos"]
        for (first, second), overlap, _ in pairs:
            if overlap >= least and first % every == second % every == 0:
                overlapping.setdefault(names[first], set()).add(names[second])
                overlapping.setdefault(names[second], set()).add(names[first])
    return overlapping


def extract(folder: Path, names: Sequence[str], conf: str, path: Path) -> None:
    """Write local features of photos as a feature file has them."""
    loaded = load_conf(conf)
    assert isinstance(loaded, SparseConf)
    extractor = load_extractor(loaded.features.model, "cpu")
    with h5py.File(path, "w") as file:
        for name in names:
            pixels = read_image(folder / name)
            features = extract_image(extractor, loaded.features.preprocessing, pixels)
            file[f"{name}/keypoints"] = features["keypoints"]
            file[f"{name}/descriptors"] = features["descriptors"]


def ranked_again(path: Path, name: str, similar: Sequence[str], front_end: str) -> list[str]:
    """The first photos by how many local features they share with a query."""
    with h5py.File(path, "r") as file:
        query = file[f"{name}/descriptors"][()]
        votes = {
            other: mutual_neighbours(query, file[f"{other}/descriptors"][()], front_end)
            for other in similar[:RANKED_AGAIN]
        }
    return ranked_by_votes(votes)


def row(title: str, rankings: dict[str, list[str]], overlapping: Overlapping) -> str:
    """How often one of the first photos is right; and how many of the right ones are among them."""
    hits, found = [], []
    for count in COUNTS:
        right = [len(overlapping[name].intersection(rankings[name][:count])) for name in rankings]
        most = [min(count, len(overlapping[name])) for name in rankings]
        hits.append(f"{100 * np.mean(np.array(right) > 0):.1f}")
        found.append(f"{100 * np.mean(np.array(right) / most):.1f}")
    return f"| {title} | {' / '.join(hits)} | {' / '.join(found)} |"


def main() -> None:
    """Print a row for each descriptor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="has scene_info and the photos")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=list(FEATURES))
    parser.add_argument("--every", type=int, default=1, help="n-th photo of each scene (default 1)")
    parser.add_argument("--overlap", type=float, default=0.1, help="least, of a right photo")
    parser.add_argument("--without", nargs="*", default=[], help="scenes of a place that is there")
    options = parser.parse_args()
    overlapping = read_overlaps(options.folder, options.every, options.overlap, options.without)
    names = sorted(overlapping)
    counts = " / ".join(map(str, COUNTS))
    print(f"{len(names)} photos, overlaps of at least {options.overlap}")
    print(f"| descriptor | a right photo among the first {counts}, % | right photos found, % |")
    print("|---|---|---|")
    for title in options.features:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "features.h5"
            extract(options.folder, names, FEATURES[title], path)
            start = time.process_time()
            index: VladIndex = make_index(names, path)
            seconds = time.process_time() - start
            similar = {name: index.similar_to(name) for name in names}
            print(row(f"VLAD on {title} ({seconds:.0f} CPU s)", similar, overlapping))
            again = {name: ranked_again(path, name, similar[name], title) for name in names}
            print(row(f"VLAD on {title}, ranked again", again, overlapping), flush=True)


if __name__ == "__main__":
    main()
