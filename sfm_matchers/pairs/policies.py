"""Which photos to match with which: lists of pairs of image names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files.names import in_natural_order
from sfm_matchers.files.pair_lists import Pair, check_pair_file, read_pairs, unique_pairs
from sfm_matchers.pairs.retrieval import most_similar

if TYPE_CHECKING:
    import pycolmap


def exhaustive_pairs(names: Sequence[str]) -> list[Pair]:
    """Return every photo with every other, each pair once."""
    return list(itertools.combinations(names, 2))


def sequential_pairs(names: Sequence[str], overlap: int) -> list[Pair]:
    """Return each photo with the `overlap` photos that follow it in the order of names.

    Numbers in names count as numbers: ``frame9`` comes before ``frame10``.
    """
    ordered = in_natural_order(names)
    return [
        (name, other)
        for index, name in enumerate(ordered)
        for other in ordered[index + 1 : index + 1 + overlap]
    ]


def retrieval_pairs(names: Sequence[str], descriptor_path: Path, num_matched: int) -> list[Pair]:
    """Return each photo with the `num_matched` most similar by global descriptor, each pair once.

    Args:
        names: the photos.
        descriptor_path: feature file with a ``global_descriptor`` for each photo.
        num_matched: neighbours per photo; all others if there are fewer.
    """
    neighbours = most_similar(names, names, descriptor_path, num_matched)
    return unique_pairs((name, other) for name in names for other in neighbours[name])


def query_pairs(
    queries: Sequence[str],
    database: Sequence[str],
    descriptor_path: Path,
    num_matched: int,
    min_similarity: float = -np.inf,
    database_path: Path | None = None,
) -> list[Pair]:
    """Return each query with its `num_matched` most similar database photos, best first.

    Photos whose descriptors have a dot product below `min_similarity` are left out; hloc has 0.
    The database's descriptors may be in a file of their own, `database_path`.
    """
    neighbours = most_similar(
        queries, database, descriptor_path, num_matched, min_similarity, database_path
    )
    return [(name, other) for name in queries for other in neighbours[name]]


def covisibility_pairs(model: pycolmap.Reconstruction, num_matched: int) -> list[Pair]:
    """Return each photo of a model with the `num_matched` that share most 3D points with it.

    Both directions are listed, by name; photos that share equally many are ordered by name.
    """
    tracks = {
        point_id: [element.image_id for element in point.track.elements]
        for point_id, point in model.points3D.items()
    }
    pairs = []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        shared: Counter[int] = Counter()
        for point in image.get_observation_points2D():
            shared.update(set(tracks[point.point3D_id]))
        del shared[image.image_id]
        others = [(-count, model.images[other].name) for other, count in shared.items()]
        pairs += [(image.name, name) for _, name in sorted(others)[:num_matched]]
    return pairs


def pose_pairs(
    model: pycolmap.Reconstruction, num_matched: int, rotation_threshold: float = 30.0
) -> list[Pair]:
    """Return each photo of a model with the `num_matched` nearest that look the same way.

    Args:
        model: its images have poses.
        num_matched: neighbours per photo, fewer where fewer look the same way.
        rotation_threshold: largest angle between the optical axes, in degrees.
    """
    images = sorted(
        (image for image in model.images.values() if image.has_pose), key=lambda image: image.name
    )
    names = [image.name for image in images]
    centers = np.array([image.projection_center() for image in images]).reshape(-1, 3)
    axes = np.array([image.viewing_direction() for image in images]).reshape(-1, 3)
    smallest_cosine = np.cos(np.deg2rad(rotation_threshold))
    pairs = []
    for index, name in enumerate(names):
        distances = np.linalg.norm(centers - centers[index], axis=1)
        distances[axes @ axes[index] < smallest_cosine] = np.inf
        distances[index] = np.inf
        nearest = np.argsort(distances, kind="stable")[:num_matched]
        pairs += [(name, names[other]) for other in nearest if np.isfinite(distances[other])]
    return pairs


def pairs_from_file(path: Path, names: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
    """Read pairs from a text file.

    Returns:
        The pairs of known photos, each once, and the pairs that name an unknown photo.

    Raises:
        InputError: the file is missing or malformed, or no pair is of known photos.
    """
    path = Path(path)
    check_pair_file(path)
    known = set(names)
    listed = unique_pairs(read_pairs(path, known))
    pairs = [pair for pair in listed if known.issuperset(pair)]
    if not pairs:
        raise InputError(f"{path} holds no pair of two photos of the folder")
    return pairs, [pair for pair in listed if not known.issuperset(pair)]
