"""Global descriptors that need no download, and the search for similar photos.

The descriptor is VLAD (Jegou et al., "Aggregating local descriptors into a compact image
representation", CVPR 2010) over the photos' own SIFT features, with a vocabulary learned from the
photos themselves, intra-normalisation and square-root (Arandjelovic and Zisserman, "All about
VLAD", CVPR 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.hdf5 import Hdf5File, open_h5
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.machine.progress import progress

NUM_VISUAL_WORDS = 64
SIFT_DIM = 128
_TRAINING_DESCRIPTORS = 100_000
_MAX_DESCRIPTORS_PER_IMAGE = 2048


def extract_vlad(
    names: Sequence[str],
    feature_path: Path,
    descriptor_path: Path,
    image_fingerprints: Mapping[str, str],
    vocabulary_names: Sequence[str] | None = None,
) -> list[str]:
    """Write a ``global_descriptor`` (64 x 128,) float16 for each photo from its SIFT features.

    Args:
        names: the photos.
        feature_path: their SIFT features.
        descriptor_path: the feature file to make or complete.
        image_fingerprints: image name -> fingerprint of its content.
        vocabulary_names: the photos that the vocabulary is learned from, all if None. When they
            change, all descriptors change; with the photos of a map here, queries can come later.

    Returns:
        The names whose descriptors were computed now.

    Raises:
        InputError: a photo has no features, or there is none to learn the vocabulary from.
    """
    staged = StagedFile(descriptor_path)
    vocabulary_names = names if vocabulary_names is None else vocabulary_names
    if names and not vocabulary_names:
        raise InputError("there is no photo to learn the vocabulary of the retrieval from")
    learned_from = sorted((name, image_fingerprints[name]) for name in vocabulary_names)
    source = fingerprint(revisions.GLOBAL_DESCRIPTORS, "vlad", NUM_VISUAL_WORDS, learned_from)
    wanted = {name: fingerprint(source, image_fingerprints[name]) for name in names}
    missing = [name for name in names if not staged.is_current(name, wanted[name])]
    if missing:
        with open_h5(feature_path) as file:
            vocabulary = learn_vocabulary(file, vocabulary_names)
            for name in progress(missing, title="Global descriptors", unit="photo"):
                vlad = vlad_descriptor(_descriptors(file, name), vocabulary)
                entry = {"global_descriptor": vlad.astype(np.float16)}
                image_size = file.numbers(name, "image_size")
                if image_size is not None:
                    entry["image_size"] = image_size
                staged.add({name: entry}, wanted)
    staged.commit()
    return missing


def _descriptors(file: Hdf5File, name: str, dimension: int | None = SIFT_DIM) -> np.ndarray:
    """Return `sampled_descriptors` of a photo, which have `dimension` numbers if it is given."""
    stored = file.finite_numbers(name, "descriptors")
    if stored is None or stored.ndim != 2 or (dimension and len(stored) != dimension):
        kind = f"SIFT descriptors ({SIFT_DIM}, N)" if dimension == SIFT_DIM else "descriptors"
        raise InputError(f"{file.path} holds no {kind} of {name!r}")
    return sampled_descriptors(stored)


def sampled_descriptors(stored: np.ndarray) -> np.ndarray:
    """Return descriptors (D, N) of a feature file as (N, D) float32, an even sample of at most
    2048."""
    descriptors = stored.T.astype(np.float32)
    step = max(1, len(descriptors) // _MAX_DESCRIPTORS_PER_IMAGE)
    return descriptors[::step]


def learn_vocabulary(
    file: Hdf5File, names: Sequence[str], dimension: int | None = SIFT_DIM
) -> np.ndarray:
    """Return visual words (64, D) float32, or one of zeros where there are too few descriptors.

    Args:
        file: a feature file.
        names: the photos that they are learned from.
        dimension: D, that of the photos if None.
    """
    per_image = max(NUM_VISUAL_WORDS, _TRAINING_DESCRIPTORS // len(names))
    rng = np.random.default_rng(0)
    samples = []
    for name in names:
        descriptors = _descriptors(file, name, dimension)
        chosen = rng.permutation(len(descriptors))[:per_image]
        samples.append(descriptors[chosen])
    training = np.concatenate(samples)
    if len(training) < NUM_VISUAL_WORDS:
        return np.zeros((1, training.shape[1]), dtype=np.float32)
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0.0)
    flags = cv2.KMEANS_PP_CENTERS
    _, _, centres = cv2.kmeans(training, NUM_VISUAL_WORDS, None, criteria, 1, flags)  # type: ignore[call-overload]
    return np.asarray(centres)


def vlad_descriptor(descriptors: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """Return the VLAD vector (K * D,) of unit length from descriptors (N, D), words (K, D)."""
    vlad = np.zeros_like(vocabulary)
    if len(descriptors):
        squared = (vocabulary**2).sum(axis=1)
        words = np.argmin(squared - 2 * descriptors @ vocabulary.T, axis=1)
        np.add.at(vlad, words, descriptors - vocabulary[words])
    vlad /= np.linalg.norm(vlad, axis=1, keepdims=True) + 1e-12
    vlad = np.sign(vlad) * np.sqrt(np.abs(vlad))
    return (vlad / (np.linalg.norm(vlad) + 1e-12)).reshape(-1)


def most_similar(
    queries: Sequence[str],
    database: Sequence[str],
    descriptor_path: Path,
    num_matched: int,
    min_similarity: float = -np.inf,
    database_path: Path | None = None,
) -> dict[str, list[str]]:
    """Return, per query, the `num_matched` database photos of largest dot product, best first.

    A photo is never its own neighbour, nor is one whose dot product is below `min_similarity`; ties
    are broken by the order of `database`. The database's descriptors are in `database_path` if it
    is given, else with the others in `descriptor_path`.

    Raises:
        InputError: a photo has no global descriptor, one of another length, or no finite one.
    """
    if not len(database):
        return {name: [] for name in queries}
    with open_h5(database_path or descriptor_path) as file:
        database_matrix = _global_descriptors(file, database)
    with open_h5(descriptor_path) as file:
        neighbours = {}
        for start in range(0, len(queries), 256):
            block = queries[start : start + 256]
            descriptors = _global_descriptors(file, block, database_matrix.shape[1])
            order, similarities = by_similarity(descriptors, database_matrix)
            for name, row, similarity in zip(block, order, similarities, strict=True):
                ranked = row[: num_matched + 1]
                similar = ranked[similarity[ranked] >= min_similarity]
                others = [database[index] for index in similar if database[index] != name]
                neighbours[name] = others[:num_matched]
    return neighbours


def by_similarity(descriptors: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of `database` (N, D) for each descriptor (M, D), the most similar first, and
    the similarities, both (M, N); the latter in the order of the rows."""
    similarities = descriptors @ database.T
    return np.argsort(-similarities, axis=1, kind="stable"), similarities


def _global_descriptors(
    file: Hdf5File, names: Sequence[str], length: int | None = None
) -> np.ndarray:
    """Global descriptors (N, D) float32; D is `length`, or that of the first."""
    rows = []
    for name in names:
        descriptor = file.finite_numbers(name, "global_descriptor")
        if descriptor is None:
            raise InputError(f"{file.path} holds no global descriptor of {name!r}")
        rows.append(descriptor.reshape(-1))
        length = length or len(rows[0])
        if len(rows[-1]) != length:
            raise InputError(
                f"{file.path}: the global descriptor of {name!r} has {len(rows[-1])} numbers, "
                f"others have {length}: they are of different networks"
            )
    return np.stack(rows).astype(np.float32)


MAX_DESCRIPTORS = 768  # descriptors of a photo: enough to tell how much two photos share
# Of the distances to the nearest and the second nearest descriptor, by front-end: with a ratio of
# 0.9 photos of two scenes share 51 of SIFT's, those of one 64; of ALIKED's 9 and 24.
RATIOS, OTHER_RATIO = {"sift": 0.8}, 0.9
# Shared descriptors that mean something: nine of ten photos of two scenes share fewer.
MIN_VOTES = 16


def ranked_by_votes(votes: Mapping[str, int]) -> list[str]:
    """Return photos in the order of their `mutual_neighbours` with one; as they come where these
    are too few to mean something.

    >>> ranked_by_votes({"a": 3, "b": 15, "c": 90})
    ['c', 'a', 'b']
    """
    return sorted(votes, key=lambda name: -max(votes[name], MIN_VOTES))


def mutual_neighbours(descriptors0: np.ndarray, descriptors1: np.ndarray, front_end: str) -> int:
    """How many of two photos' descriptors, made by `front_end`, are `mutual_matches`; of an even
    sample."""
    first, second = (
        stored[:, :: -(-stored.shape[1] // MAX_DESCRIPTORS) or 1]
        for stored in (descriptors0, descriptors1)
    )
    return len(mutual_matches(first, second, RATIOS.get(front_end, OTHER_RATIO)))


def mutual_matches(descriptors0: np.ndarray, descriptors1: np.ndarray, ratio: float) -> np.ndarray:
    """Which of two photos' descriptors, (D, N) and (D, M) of unit length, are each other's nearest,
    at less than `ratio` of the distance to the next one: their indices (K, 2)."""
    similarities = descriptors0.T.astype(np.float32) @ descriptors1.astype(np.float32)
    if min(similarities.shape) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    rows = np.arange(len(similarities))
    nearest = similarities.argmax(axis=1)
    is_mutual = similarities.argmax(axis=0)[nearest] == rows
    first = similarities[rows, nearest]
    similarities[rows, nearest] = -np.inf
    distances = np.sqrt(np.clip(2 - 2 * np.stack([first, similarities.max(axis=1)]), 0, None))
    matched = np.flatnonzero(is_mutual & (distances[0] < ratio * distances[1]))
    return np.stack([matched, nearest[matched]], axis=1)
