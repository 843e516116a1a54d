"""Matches of a file to keypoints and matches in hloc's files.

Images get ``keypoints`` (K, 2) float32, ``scores`` (K,) float32 and ``image_size``; hloc's dense
matching writes ``score``, but hloc itself only looks for ``scores``. Pairs get ``matches0`` (K0,)
int32 and ``matching_scores0`` (K0,) float16, in the direction in which the correspondences are
stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from sfm_matchers.errors import InputError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.hdf5 import (
    Arrays,
    Hdf5File,
    check_points,
    list_groups,
    open_h5,
)
from sfm_matchers.files.links import real_path
from sfm_matchers.files.pair_lists import Pair, names_to_pair, unique_pairs
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.keypoints.assembly import Correspondences, ImageKeypoints, PairMatches, assemble
from sfm_matchers.keypoints.grid import AggregationOptions, Key, Value
from sfm_matchers.machine.progress import progress

logger = logging.getLogger(__name__)


Existing = Literal["keep", "update", "overwrite"]

# Finished entries are stored in groups of about this size: small files are slow to merge.
PART_BYTES = 32 << 20


class AggregationSummary(NamedTuple):
    """What `aggregate` has made: images with new keypoints, and pairs with new matches."""

    num_images: int
    num_keypoints: int
    num_pairs: int
    num_matches: int


def aggregate(
    pairs: Iterable[Pair],
    correspondence_path: Path,
    feature_path: Path,
    match_path: Path,
    options: AggregationOptions,
    image_sizes: Mapping[str, tuple[int, int]],
    *,
    fixed_features: Sequence[Path] = (),
    existing: Existing = "keep",
) -> AggregationSummary:
    """Turn a correspondence file into a feature file and a match file.

    Both are committed at the end, the feature file last: an image it holds is finished. A run
    that was interrupted starts again, to the same result. Matches are made again when they are
    missing, or when their correspondences or the keypoints they refer to have changed; refined
    keypoints that were made with missing ones are made again with them, to the same result.

    Args:
        pairs: image names; repeated and reversed pairs are dropped.
        correspondence_path: correspondences of all pairs. A match file of hloc's dense matching
            holds them too.
        feature_path: the feature file to make or complete.
        match_path: the match file to make or complete.
        options: how points become keypoints.
        image_sizes: (width, height) in pixels of each image whose keypoints are built.
        fixed_features: feature files whose images keep their keypoints and do not appear in
            `feature_path`. Of several files with one image the last counts.
        existing: what happens to the images that `feature_path` holds already.
            ``keep``: they are fixed too, and new pairs snap to them. This is hloc's rule, and
            what localization needs.
            ``update``: they are kept if all were built from just these pairs, correspondences and
            options, otherwise all are built anew.
            ``overwrite``: they are built anew.

    Returns:
        What was made.

    Raises:
        InputError: a file cannot be read, or lacks the correspondences of a pair or the size of
            an image; `existing` is unknown.
    """
    _check_arguments(existing, correspondence_path, match_path)
    feature_file, match_file = (StagedFile(p, keep_parts=False) for p in (feature_path, match_path))
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_h5(correspondence_path))
        provenance = _Provenance(_find_correspondences(source, pairs), options)
        of_image = provenance.of_image
        fixed = _open_fixed_keypoints(stack, fixed_features, feature_file, existing, of_image)
        provenance.add_all(fixed)
        todo, fixed = _work_to_do(provenance, fixed, match_file, feature_file)
        _check_sizes((name for name in of_image if name not in fixed), image_sizes)
        correspondences = _LazyMapping(todo, lambda pair: _read_inside(source, pair, image_sizes))
        results = assemble(correspondences, options, fixed)
        summary = _store(results, len(todo), feature_file, match_file, image_sizes, provenance)
    match_file.commit()
    feature_file.commit()
    if todo:
        _log(summary, len(provenance.versions))
    return summary


def _log(summary: AggregationSummary, num_pairs: int) -> None:
    text = "%d images got %d keypoints, %d of %d pairs got %d matches"
    logger.info(text, *summary[:3], num_pairs, summary.num_matches)


def _work_to_do(
    provenance: _Provenance,
    fixed: Mapping[str, np.ndarray],
    match_file: StagedFile,
    feature_file: StagedFile,
) -> tuple[list[Pair], Mapping[str, np.ndarray]]:
    """The pairs whose matches are to be made, and the keypoints that stay."""
    todo = _pairs_to_do(provenance, fixed, match_file)
    of_image = provenance.of_image
    together = {name for name in of_image if feature_file.is_made_of(name, of_image[name])}
    if provenance.is_refined and any(
        together.intersection(pair) and all(name in fixed for name in pair) for pair in todo
    ):
        # Matches that were made with these keypoints are lost, and come out with them only.
        fixed = _LazyMapping([n for n in fixed if n not in together], fixed.__getitem__)
        todo = _pairs_to_do(provenance, fixed, match_file)
    return todo, fixed


def _check_arguments(existing: str, correspondence_path: Path, match_path: Path) -> None:
    if existing not in get_args(Existing):
        raise InputError(f"existing={existing!r}: expected one of {', '.join(get_args(Existing))}")
    if real_path(correspondence_path) == real_path(match_path):
        raise InputError(f"{match_path}: correspondences and matches need two different files")


def _check_sizes(names: Iterable[str], image_sizes: Mapping[str, tuple[int, int]]) -> None:
    unsized = [name for name in names if name not in image_sizes]
    if unsized:
        raise InputError(f"image_sizes lacks {len(unsized)} images, the first is {unsized[0]!r}")


def _pairs_to_do(
    provenance: _Provenance,
    fixed: Mapping[str, np.ndarray],
    match_file: StagedFile,
) -> list[Pair]:
    """Pairs of images with new keypoints, or whose matches are missing or of other inputs."""
    if not match_file.path.exists():
        return list(provenance.versions)
    with open_h5(match_file.path) as stored:

        def is_done(pair: Pair) -> bool:
            group = names_to_pair(*pair)
            return (
                all(name in fixed for name in pair)
                and match_file.is_current(group, provenance.of_pair(pair))
                and f"{group}/matches0" in stored
            )

        return [pair for pair in provenance.versions if not is_done(pair)]


def _read_inside(
    file: Hdf5File, pair: Pair, image_sizes: Mapping[str, tuple[int, int]]
) -> Correspondences:
    """The correspondences of a pair; InputError if they cannot be those of its photos."""
    points0, points1, scores = file.correspondences(*pair)
    for name, points in zip(pair, (points0, points1), strict=True):
        check_points(points, image_sizes.get(name), f"{file.path}: points of {name!r}")
    return points0, points1, scores


def _find_correspondences(file: Hdf5File, pairs: Iterable[Pair]) -> dict[Pair, str]:
    """Return each pair, in the direction in which it is stored, with its group's fingerprint."""
    found, missing = {}, []
    for name0, name1 in unique_pairs(pairs):
        entry = file.find_pair(name0, name1)
        if entry is None:
            missing.append((name0, name1))
            continue
        group, is_reversed = entry
        pair = (name1, name0) if is_reversed else (name0, name1)
        found[pair] = file.fingerprint(group) or ""
    if missing:
        raise InputError(
            f"{file.path} lacks {len(missing)} of the pairs, the first is "
            f"{missing[0][0]!r}, {missing[0][1]!r}: run the matching again, it resumes"
        )
    return found


class _Provenance:
    """Fingerprints of what the keypoints of images and the matches of pairs are made from."""

    def __init__(self, versions: Mapping[Pair, str], options: AggregationOptions) -> None:
        self.versions = versions
        self.is_refined = options.refined
        self._max_error = options.max_error
        self._contents: dict[str, str] = {}
        sources: dict[str, list[tuple[str, str, str]]] = {}
        for pair in sorted(versions):
            for name in pair:
                sources.setdefault(name, []).append((*pair, versions[pair]))
        settings = (revisions.KEYPOINTS, asdict(options))
        self.of_image = {name: fingerprint(settings, sources[name]) for name in sources}

    def add_keypoints(self, name: str, keypoints: np.ndarray) -> None:
        content = np.ascontiguousarray(keypoints, dtype=np.float32).tobytes()
        self._contents[name] = hashlib.sha256(content).hexdigest()

    def add_all(self, keypoints: Mapping[str, np.ndarray]) -> None:
        for name, array in keypoints.items():
            self.add_keypoints(name, array)

    def of_pair(self, pair: Pair) -> str:
        keypoints = [self._contents[name] for name in pair]
        return fingerprint(revisions.KEYPOINTS, self.versions[pair], keypoints, self._max_error)


def _open_fixed_keypoints(
    stack: contextlib.ExitStack,
    fixed_features: Sequence[Path],
    feature_file: StagedFile,
    existing: Existing,
    of_image: Mapping[str, str],
) -> Mapping[str, np.ndarray]:
    """Return the keypoints that stay as they are, see `aggregate`, read on demand."""
    file_of_image: dict[str, Hdf5File] = {}
    for path in fixed_features:
        file = stack.enter_context(open_h5(path))
        file_of_image |= {name: file for name in list_groups(path) if name in of_image}
    if existing != "overwrite" and feature_file.path.exists():
        file = stack.enter_context(open_h5(feature_file.path))
        own = [name for name in of_image if name not in file_of_image]
        kept = [name for name in own if f"{name}/keypoints" in file]
        is_current = all(feature_file.is_current(name, of_image[name]) for name in kept)
        if existing == "keep" or (is_current and len(kept) == len(own)):
            file_of_image |= dict.fromkeys(kept, file)
    return _LazyMapping(file_of_image, lambda name: file_of_image[name].keypoints(name))


def _store(
    results: Iterable[ImageKeypoints | PairMatches],
    num_pairs: int,
    feature_file: StagedFile,
    match_file: StagedFile,
    image_sizes: Mapping[str, tuple[int, int]],
    provenance: _Provenance,
) -> AggregationSummary:
    """Write results as they come and count them."""
    features, matches = _Writer(feature_file), _Writer(match_file)
    num_keypoints = num_matches = 0
    with progress(total=num_pairs, title="Assembling", unit="pair") as bar:
        for result in results:
            if isinstance(result, ImageKeypoints):
                provenance.add_keypoints(result.name, result.keypoints)
                arrays = {
                    "keypoints": result.keypoints,
                    "scores": result.scores,
                    "image_size": np.asarray(image_sizes[result.name], dtype=np.int64),
                }
                features.add(result.name, arrays, provenance.of_image[result.name])
                num_keypoints += len(result.keypoints)
            else:
                arrays = {
                    "matches0": result.matches0,
                    "matching_scores0": result.matching_scores0,
                }
                matches.add(names_to_pair(*result.pair), arrays, provenance.of_pair(result.pair))
                num_matches += int((result.matches0 >= 0).sum())
                bar.update()
    features.flush()
    matches.flush()
    return AggregationSummary(features.count, num_keypoints, matches.count, num_matches)


class _Writer:
    """Adds entries to a staged file, many at a time."""

    def __init__(self, file: StagedFile) -> None:
        self.count = 0
        self._file = file
        self._entries: dict[str, Arrays] = {}
        self._fingerprints: dict[str, str] = {}
        self._num_bytes = 0

    def add(self, name: str, arrays: Arrays, entry_fingerprint: str) -> None:
        self.count += 1
        self._entries[name] = arrays
        self._fingerprints[name] = entry_fingerprint
        self._num_bytes += sum(array.nbytes for array in arrays.values())
        if self._num_bytes > PART_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._entries:
            self._file.add(self._entries, self._fingerprints)
        self._entries, self._fingerprints, self._num_bytes = {}, {}, 0


class _LazyMapping(Mapping[Key, Value]):
    """A mapping that computes a value each time it is asked for."""

    def __init__(self, keys: Iterable[Key], read: Callable[[Key], Value]) -> None:
        self._keys = dict.fromkeys(keys)
        self._read = read

    def __getitem__(self, key: Key) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._read(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
