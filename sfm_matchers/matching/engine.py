"""Match a list of pairs and store the result; pairs that are stored already are kept.

A pair is safe on disk as soon as it is matched. A pair is done again when what it was computed
from has changed: the conf, the weights, or one of its two photos.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import h5py
import numpy as np

from sfm_matchers.confs import Conf, DetectorFreeConf
from sfm_matchers.errors import InputError, PhotoChangedError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint, read_fingerprint
from sfm_matchers.files.hdf5 import open_h5, read_features
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.pair_matcher import PairMatcher, View
from sfm_matchers.matchers.protocols import (
    Arrays,
    DetectorFreeBatchMatcher,
    DetectorFreeMatcher,
    EarlyExitMatcher,
    EncodedImage,
    Matches,
    SparseBatchMatcher,
    SparseListMatcher,
    SparseMatcher,
    SparseMatches,
)
from sfm_matchers.matching.executors import Executor, InProcess, MatchedPair, MatchPairs
from sfm_matchers.matching.plan import COARSE, FINE, Grain, cut
from sfm_matchers.photos.checked import read_photo
from sfm_matchers.photos.images import decoding_bytes

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

# Encoded photos kept for reuse over the pairs of a photo.
ENCODED_CACHE_BYTES = 1 << 30
READ_AHEAD = 4  # photos decoded by threads while the matcher works
READ_AHEAD_BYTES = 1 << 29  # of theirs; the largest are decoded when they are needed


def match_features(
    conf: Conf,
    load_matcher: Callable[[], SparseMatcher],
    pairs: Sequence[Pair],
    feature_path: Path,
    match_path: Path,
    weights_fingerprint: str = "",
    executor: Executor | None = None,
) -> list[Pair]:
    """Match local features of all pairs into a match file.

    Args:
        conf: the matcher's conf.
        load_matcher: builds the matcher; called only if there is something to match, in each
            process that matches.
        pairs: image names; each pair once.
        feature_path: feature file with both photos of each pair.
        match_path: the match file to make or complete.
        weights_fingerprint: changes when the matcher's weights change.
        executor: which processes match; this one if None.

    Returns:
        The pairs that were matched now.

    Raises:
        InputError: the feature file lacks a photo.
    """
    with open_h5(feature_path) as features:
        sources = {name: _source(features, name) for pair in pairs for name in pair}
    wanted = _wanted(pairs, conf, weights_fingerprint, sources)
    task = FeatureMatching(load_matcher, Path(feature_path))
    grain = COARSE if conf.matcher == colmap_matching.NAME else FINE
    return _complete(task, pairs, wanted, match_path, executor or InProcess(), grain)


def match_images(
    conf: DetectorFreeConf,
    load_matcher: Callable[[], DetectorFreeMatcher],
    pairs: Sequence[Pair],
    image_dir: Path,
    image_fingerprints: Mapping[str, str],
    correspondence_path: Path,
    mask_dir: Path | None = None,
    weights_fingerprint: str = "",
    executor: Executor | None = None,
) -> list[Pair]:
    """Match the images of all pairs into a correspondence file.

    Args:
        conf: the matcher's conf.
        load_matcher: as in `match_features`.
        pairs: image names; each pair once.
        image_dir: the photos.
        image_fingerprints: image name -> `images.photo_fingerprint`.
        correspondence_path: the correspondence file to make or complete.
        mask_dir: COLMAP-style masks; matches on masked-out pixels are dropped.
        weights_fingerprint: changes when the matcher's weights change.
        executor: which processes match; this one if None.

    Returns:
        The pairs that were matched now.

    Raises:
        PhotoChangedError: photos have vanished or changed since their fingerprints were taken;
            all pairs of other photos are done.
    """
    wanted = _wanted(pairs, conf, weights_fingerprint, image_fingerprints)
    task = ImageMatching(conf, load_matcher, Path(image_dir), mask_dir, dict(image_fingerprints))
    return _complete(task, pairs, wanted, correspondence_path, executor or InProcess())


def _source(features: h5py.File, name: str) -> str:
    return read_fingerprint(features, name) or "imported"


def _wanted(
    pairs: Sequence[Pair], conf: Conf, weights_fingerprint: str, sources: Mapping[str, str]
) -> dict[str, str]:
    """Return the fingerprint each pair's group must have."""
    preprocessing = conf.preprocessing.settings() if isinstance(conf, DetectorFreeConf) else {}
    settings = fingerprint(revisions.MATCHES, dict(conf.model), preprocessing)
    return {
        names_to_pair(*pair): fingerprint(settings, weights_fingerprint, *map(sources.get, pair))
        for pair in pairs
    }


def _complete(
    task: FeatureMatching | ImageMatching,
    pairs: Sequence[Pair],
    wanted: Mapping[str, str],
    path: Path,
    executor: Executor,
    grain: Grain = FINE,
) -> list[Pair]:
    """Match the pairs that the file lacks, or holds of other inputs or settings."""
    staged = StagedFile(path, wanted)
    groups = {pair: names_to_pair(*pair) for pair in pairs}
    todo = {pair for pair in pairs if not staged.is_current(groups[pair], wanted[groups[pair]])}
    outdated = sum(groups[pair] in staged for pair in todo)
    if outdated:
        logger.info(
            "%d pairs in %s are matched again: the photos, the matcher's settings or its weights "
            "have changed; %d are kept",
            outdated,
            staged.path.name,
            len(pairs) - len(todo),
        )
    left_out: dict[str, str] = {}
    if todo:
        # The plan is that of all pairs, so that it does not depend on what is done already.
        shards = [shard.only(todo) for shard in cut(pairs, wanted, executor.num_workers, grain)]
        left_out = executor.run(task, shards, staged.path)
    if not executor.shares_with_others:
        # Opened again, it has what the executor has added.
        (StagedFile(path, wanted) if todo else staged).commit()
    if left_out:
        raise PhotoChangedError(left_out)
    return [pair for pair in pairs if pair in todo]


@dataclass(frozen=True)
class FeatureMatching:
    """Pairs are matched by the features of a file; see `executors.MatchingTask`."""

    load_matcher: Callable[[], SparseMatcher]
    feature_path: Path

    @contextlib.contextmanager
    def opened(self) -> Iterator[MatchPairs]:
        """Load the matcher."""
        matcher = self.load_matcher()
        with open_h5(self.feature_path) as features:
            cached: _Cache[str, dict[str, np.ndarray]] = _Cache(
                lambda name: read_features(features, name), _num_bytes
            )

            def match(pairs: Sequence[Pair], left_out: dict[str, str]) -> Iterator[MatchedPair]:
                return matched_features(matcher, pairs, cached.get)

            yield match


def matched_features(
    matcher: SparseMatcher, pairs: Sequence[Pair], features_of: Callable[[str], Arrays]
) -> Iterator[MatchedPair]:
    """Match pairs by features in memory; yield the datasets of a match file, in any order."""
    if isinstance(matcher, SparseListMatcher):
        for pair, matches in matcher.match_list(pairs, features_of):
            yield pair, _match_arrays(matches)
    elif isinstance(matcher, SparseBatchMatcher):
        for batch in _in_batches(pairs, matcher.batch_size):
            features = [(features_of(name0), features_of(name1)) for name0, name1 in batch]
            for index, matches in enumerate(matcher.match_batch(features)):
                arrays = _match_arrays(matches)
                if isinstance(matcher, EarlyExitMatcher):
                    arrays["layers_run"] = np.asarray(matcher.layers_run[index], np.int8)
                yield batch[index], arrays
    else:
        for name0, name1 in pairs:
            matches = matcher.match(features_of(name0), features_of(name1))
            yield (name0, name1), _match_arrays(matches)


def _match_arrays(matches: SparseMatches) -> dict[str, np.ndarray]:
    matches0, scores0 = matches
    return {
        "matches0": matches0.astype(np.int32),
        "matching_scores0": scores0.astype(np.float16),
    }


def _in_batches(pairs: Sequence[Pair], size: int) -> Iterator[Sequence[Pair]]:
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


@dataclass(frozen=True)
class _Encoded:
    """What is kept of a photo for its other pairs.

    Attributes:
        view: in one position.
        small: in all positions, see `PairMatcher.positions`; beside the upright view only.
    """

    view: View
    small: tuple[EncodedImage, ...]

    @property
    def num_bytes(self) -> int:
        return self.view.num_bytes + sum(image.num_bytes for image in self.small)


@dataclass(frozen=True)
class ImageMatching:
    """Pairs are matched by their photos; see `executors.MatchingTask`."""

    conf: DetectorFreeConf
    load_matcher: Callable[[], DetectorFreeMatcher]
    image_dir: Path
    mask_dir: Path | None
    image_fingerprints: Mapping[str, str]

    @contextlib.contextmanager
    def opened(self) -> Iterator[MatchPairs]:
        """Load the matcher."""
        matcher = self.load_matcher()
        chain = PairMatcher(matcher, self.conf.preprocessing)
        batch_size = matcher.batch_size if isinstance(matcher, DetectorFreeBatchMatcher) else 1
        with ThreadPoolExecutor(READ_AHEAD) as threads:
            photos = _ReadAhead(
                self._read, threads, lambda name: decoding_bytes(self.image_dir / name)
            )

            def encode(key: tuple[str, int]) -> _Encoded:
                name, quarters = key
                image, mask = photos.get(name)
                photo = chain.photo(image, self.image_dir / name, mask)
                small = () if quarters else chain.positions(photo)
                return _Encoded(chain.view(photo, quarters), small)

            encoded = _Cache(encode, lambda photo: photo.num_bytes)

            def match(pairs: Sequence[Pair], left_out: dict[str, str]) -> Iterator[MatchedPair]:
                ready = _ready_pairs(pairs, encoded, photos, chain, left_out)
                for batch in _of_equal_size(ready, batch_size):
                    found = chain.match_views([views for _, views in batch])
                    for (pair, _), matches in zip(batch, found, strict=True):
                        yield pair, _correspondences(matches)

            yield match

    def _read(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        return read_photo(self.image_dir, name, self.mask_dir, self.image_fingerprints[name])


_ReadyPair = tuple[Pair, tuple[View, View]]


def _ready_pairs(
    pairs: Sequence[Pair],
    encoded: _Cache[tuple[str, int], _Encoded],
    photos: _ReadAhead,
    chain: PairMatcher,
    left_out: dict[str, str],
) -> Iterator[_ReadyPair]:
    """Encode both photos of each pair, upright, the second as it agrees best with the first.

    Pairs of a photo that cannot be read are left out.
    """

    def ready(name: str, quarters: int = 0) -> _Encoded | None:
        if name not in left_out:
            try:
                return encoded.get((name, quarters))
            except (InputError, OSError) as error:
                left_out[name] = str(error)
        return None

    for index, pair in enumerate(pairs):
        near = [name for later in pairs[index : index + READ_AHEAD] for name in later]
        photos.expect([name for name in near if (name, 0) not in encoded and name not in left_out])

        photo0, photo1 = map(ready, pair)
        if photo0 and photo1:
            photo1 = ready(pair[1], chain.best_turn(photo0.small, photo1.small))
        if photo0 and photo1:
            yield pair, (photo0.view, photo1.view)


def _of_equal_size(pairs: Iterable[_ReadyPair], batch_size: int) -> Iterator[list[_ReadyPair]]:
    """Put pairs together whose images have the same sizes in the network."""
    waiting: dict[tuple[object, object], list[_ReadyPair]] = {}
    for pair, views in pairs:
        sizes = (views[0].encoded.network_size, views[1].encoded.network_size)
        waiting.setdefault(sizes, []).append((pair, views))
        if len(waiting[sizes]) >= batch_size:
            yield waiting.pop(sizes)
    yield from waiting.values()


def _correspondences(matches: Matches) -> dict[str, np.ndarray]:
    """The datasets of a pair."""
    return {
        "keypoints0": matches.keypoints0.astype(np.float32),
        "keypoints1": matches.keypoints1.astype(np.float32),
        "scores": matches.scores.astype(np.float32),
    }


def _num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


class _ReadAhead:
    """Photos decoded by threads before they are asked for, `READ_AHEAD_BYTES` of them at most."""

    def __init__(
        self,
        read: Callable[[str], tuple[np.ndarray, np.ndarray | None]],
        threads: ThreadPoolExecutor,
        num_bytes: Callable[[str], int],
    ) -> None:
        self._read = read
        self._threads = threads
        self._num_bytes = num_bytes
        self._bytes_coming: dict[str, int] = {}
        self._coming: dict[str, Future[tuple[np.ndarray, np.ndarray | None]]] = {}

    def expect(self, names: Iterable[str]) -> None:
        """Begin to read photos, a few at a time."""
        for name in names:
            if name in self._coming or len(self._coming) >= READ_AHEAD:
                continue
            num_bytes = self._num_bytes(name)
            if num_bytes + sum(self._bytes_coming.values()) <= READ_AHEAD_BYTES:
                self._bytes_coming[name] = num_bytes
                self._coming[name] = self._threads.submit(self._read, name)

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a photo and its mask."""
        coming = self._coming.pop(name, None)
        self._bytes_coming.pop(name, None)
        return self._read(name) if coming is None else coming.result()


class _Cache(Generic[Key, Value]):
    """Values computed on demand; the least recently used are dropped beyond a limit of bytes."""

    def __init__(self, compute: Callable[[Key], Value], num_bytes: Callable[[Value], int]) -> None:
        self._compute = compute
        self._num_bytes = num_bytes
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._total_bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def get(self, key: Key) -> Value:
        """Return a value, which is now the most recently used."""
        if key not in self._values:
            self._values[key] = self._compute(key)
            self._total_bytes += self._num_bytes(self._values[key])
        self._values.move_to_end(key)
        # The two photos of the current pair always stay.
        while len(self._values) > 2 and self._total_bytes > ENCODED_CACHE_BYTES:
            _, dropped = self._values.popitem(last=False)
            self._total_bytes -= self._num_bytes(dropped)
        return self._values[key]
