"""Match a list of pairs and store the result; pairs that are stored already are kept.

A pair is safe on disk as soon as it is matched. A pair is done again when what it was computed
from has changed: the conf, the weights, or one of its two photos.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sfm_matchers.confs import Conf, DetectorFreeConf
from sfm_matchers.errors import PhotoChangedError
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import fingerprint
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import Pair, names_to_pair
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.batching import FittingBatches
from sfm_matchers.matchers.pair_matcher import PairMatcher
from sfm_matchers.matchers.protocols import (
    Arrays,
    DetectorFreeMatcher,
    EarlyExitMatcher,
    Matcher,
    Matches,
    SparseBatchMatcher,
    SparseListMatcher,
    SparseMatcher,
    SparseMatches,
    batch_size_of,
    device_of,
    threads_may_share,
)
from sfm_matchers.matchers.quarter_turns import Look
from sfm_matchers.matching.at_hand import (
    READ_AHEAD,
    Kept,
    ReadAhead,
    ReadyPair,
    bytes_to_keep,
    in_batches,
)
from sfm_matchers.matching.executors import Executor, InProcess, MatchedPair, MatchPairs
from sfm_matchers.matching.photos_at_hand import PhotosAtHand
from sfm_matchers.matching.plan import COARSE, FINE, Grain, cut
from sfm_matchers.matching.side_by_side import Run, pairs_at_once, side_by_side
from sfm_matchers.matching.turns import LookAt, Turns, looked_at
from sfm_matchers.photos.checked import StoredPhoto, read_photo
from sfm_matchers.photos.images import decoding_bytes

logger = logging.getLogger(__name__)

FEATURE_BYTES = 1 << 30  # of features kept for the other pairs of their photos


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
    with open_h5(feature_path) as file:
        sources = {name: file.fingerprint(name) or "imported" for pair in pairs for name in pair}
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
    if conf.preprocessing.quarter_turns:
        sources = {
            pair: fingerprint(revisions.TURNS, wanted[names_to_pair(*pair)]) for pair in pairs
        }
        looks = correspondence_path.with_name(f"{correspondence_path.name}.turns.json")
        turns = looked_at(pairs, sources, looks, task.opened_to_look)
        task = replace(task, turns=turns)
        for pair, source in sources.items():
            wanted[names_to_pair(*pair)] = fingerprint(source, turns.of(pair))
    return _complete(task, pairs, wanted, correspondence_path, executor or InProcess())


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
    skipped: dict[str, str] = {}
    if todo:
        # The plan is that of all pairs, so that it does not depend on what is done already.
        shards = [shard.only(todo) for shard in cut(pairs, wanted, executor.num_workers, grain)]
        skipped = executor.run(task, shards, staged.path)
    if not executor.shares_with_others:
        # Opened again, it has what the executor has added.
        (StagedFile(path, wanted) if todo else staged).commit()
    if skipped:
        raise PhotoChangedError(skipped)
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
        with open_h5(self.feature_path) as file:
            kept = Kept(lambda key: file.features(key[0]), _num_bytes, FEATURE_BYTES)

            with side_by_side(_pairs_at_once(matcher)) as run:

                def match(pairs: Sequence[Pair], skipped: dict[str, str]) -> Iterator[MatchedPair]:
                    features_of = lambda name: kept.get((name, None))  # noqa: E731
                    return matched_features(matcher, pairs, features_of, run)

                yield match


def _pairs_at_once(matcher: Matcher) -> int:
    """How many pairs threads match side by side."""
    if not threads_may_share(matcher):
        return 1
    return pairs_at_once(device_of(matcher), batch_size_of(matcher))


def matched_features(
    matcher: SparseMatcher,
    pairs: Sequence[Pair],
    features_of: Callable[[str], Arrays],
    run: Run = map,
) -> Iterator[MatchedPair]:
    """Match pairs by features in memory; yield the datasets of a match file, in any order.

    Args:
        run: works on pairs that are matched one by one.
    """
    if isinstance(matcher, SparseListMatcher):
        for pair, matches in matcher.match_list(pairs, features_of):
            yield pair, _match_arrays(matches)
        return

    def matched(batch: Sequence[Pair]) -> list[MatchedPair]:
        features = [(features_of(name0), features_of(name1)) for name0, name1 in batch]
        if not isinstance(matcher, SparseBatchMatcher):
            return [(batch[0], _match_arrays(matcher.match(*features[0])))]
        arrays = [_match_arrays(matches) for matches in matcher.match_batch(features)]
        if isinstance(matcher, EarlyExitMatcher):
            for one, layers in zip(arrays, matcher.layers_run, strict=True):
                one["layers_run"] = np.asarray(layers, np.int8)
        return list(zip(batch, arrays, strict=True))

    batch_size = batch_size_of(matcher)
    batches = FittingBatches(matched, batch_size)
    if batch_size > 1:
        yield from batches.results(pairs)
    else:
        for found in run(lambda pair: list(batches.results([pair])), pairs):
            yield from found


def _match_arrays(matches: SparseMatches) -> dict[str, np.ndarray]:
    matches0, scores0 = matches
    return {
        "matches0": matches0.astype(np.int32),
        "matching_scores0": scores0.astype(np.float16),
    }


@dataclass(frozen=True)
class ImageMatching:
    """Pairs are matched by their photos; see `executors.MatchingTask`."""

    conf: DetectorFreeConf
    load_matcher: Callable[[], DetectorFreeMatcher]
    image_dir: Path
    mask_dir: Path | None
    image_fingerprints: Mapping[str, str]
    turns: Turns = field(default_factory=Turns)

    @contextlib.contextmanager
    def opened_to_look(self) -> Iterator[LookAt]:
        """Load the matcher, to look how photos lie."""
        with self._opened() as (_, photos, run):

            def look_at(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Look]]:
                skipped: dict[str, str] = {}  # whoever matches them says so
                ordered = photos.in_order(pairs, skipped)
                for pair, look in run(lambda pair: (pair, photos.look(pair, skipped)), ordered):
                    if look is not None:
                        yield pair, look

            yield look_at

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[PairMatcher, PhotosAtHand, Run]]:
        matcher = self.load_matcher()
        chain = PairMatcher(matcher, self.conf.preprocessing)
        with (
            ThreadPoolExecutor(READ_AHEAD) as threads,
            side_by_side(_pairs_at_once(matcher)) as run,
        ):
            ahead = ReadAhead(
                self._read, threads, lambda name: decoding_bytes(self.image_dir / name)
            )
            limit = bytes_to_keep(device_of(matcher))
            yield chain, PhotosAtHand(chain, ahead, limit, self.turns), run

    @contextlib.contextmanager
    def opened(self) -> Iterator[MatchPairs]:
        """Load the matcher."""
        with self._opened() as (chain, photos, run):
            batch_size = batch_size_of(chain.matcher)
            batches: FittingBatches[ReadyPair, MatchedPair] = FittingBatches(
                lambda batch: _matched_images(chain, batch), batch_size, photos.kept.shrink
            )

            def match(pairs: Sequence[Pair], skipped: dict[str, str]) -> Iterator[MatchedPair]:
                def matched(pair: Pair) -> list[MatchedPair]:
                    ready = photos.ready(pair, skipped)
                    if ready is None:
                        return []
                    try:
                        return list(batches.results([ready]))
                    finally:
                        photos.kept.release(ready.keys)

                ordered = photos.in_order(pairs, skipped)
                if batch_size == 1:
                    for found in run(matched, ordered):
                        yield from found
                    return
                ready = filter(None, (photos.ready(pair, skipped) for pair in ordered))
                for batch in in_batches(ready, lambda: batches.size, photos.kept):
                    yield from batches.results(batch)

            yield match

    def _read(self, name: str) -> StoredPhoto:
        return read_photo(
            self.image_dir,
            name,
            self.mask_dir,
            self.image_fingerprints[name],
            with_orientation=self.conf.preprocessing.quarter_turns,
        )


def _matched_images(chain: PairMatcher, batch: Sequence[ReadyPair]) -> Iterator[MatchedPair]:
    found = chain.match_views([ready.views for ready in batch])
    for ready, matches in zip(batch, found, strict=True):
        yield ready.pair, _correspondences(matches)


def _correspondences(matches: Matches) -> dict[str, np.ndarray]:
    """The datasets of a pair."""
    return {
        "keypoints0": matches.keypoints0.astype(np.float32),
        "keypoints1": matches.keypoints1.astype(np.float32),
        "scores": matches.scores.astype(np.float32),
    }


def _num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
