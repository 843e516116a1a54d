"""Match a list of pairs and store the result; pairs that are stored already are kept.

A pair is safe on disk as soon as it is matched. A pair is done again when what it was computed
from has changed: the conf, the weights, or one of its two photos.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import h5py
import numpy as np
from tqdm import tqdm

from ..confs import Conf
from ..errors import InputError
from ..images import inside_mask, read_image, read_mask
from ..matchers import DetectorFreeMatcher, EncodedImage, SparseMatcher
from ..storage import Pair, StagedFile, fingerprint, names_to_pair, open_h5, read_group

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

# Encoded photos kept for reuse over the pairs of a photo.
ENCODED_CACHE_BYTES = 1 << 30


def match_features(
    conf: Conf,
    load_matcher: Callable[[], SparseMatcher],
    pairs: Sequence[Pair],
    feature_path: Path,
    match_path: Path,
    weights_fingerprint: str = "",
) -> list[Pair]:
    """Match local features of all pairs into a match file.

    Args:
        conf: the matcher's conf.
        load_matcher: builds the matcher; called only if there is something to match.
        pairs: image names; each pair once.
        feature_path: feature file with both photos of each pair.
        match_path: the match file to make or complete.
        weights_fingerprint: changes when the matcher's weights change.

    Returns:
        The pairs that were matched now.

    Raises:
        InputError: the feature file lacks a photo.
    """
    with open_h5(feature_path) as features:
        sources = {name: _source(features, name) for pair in pairs for name in pair}
        staged = StagedFile(match_path)
        todo, wanted = _missing(staged, pairs, conf, weights_fingerprint, sources)
        if todo:
            matcher = load_matcher()
            cached = _Cache(lambda name: read_group(features, name), _num_bytes)
            for name0, name1 in tqdm(_ordered_for_reuse(todo), desc="Matching", unit="pair"):
                matches0, scores0 = matcher.match(cached.get(name0), cached.get(name1))
                group = names_to_pair(name0, name1)
                entry: dict[str, np.ndarray] = {
                    "matches0": matches0.astype(np.int32),
                    "matching_scores0": scores0.astype(np.float16),
                }
                staged.add({group: entry}, wanted)
        staged.commit()
    return todo


def match_images(
    conf: Conf,
    load_matcher: Callable[[], DetectorFreeMatcher],
    pairs: Sequence[Pair],
    image_dir: Path,
    image_fingerprints: Mapping[str, str],
    correspondence_path: Path,
    mask_dir: Path | None = None,
    weights_fingerprint: str = "",
) -> list[Pair]:
    """Match the images of all pairs into a correspondence file.

    Args:
        conf: the matcher's conf.
        load_matcher: builds the matcher; called only if there is something to match.
        pairs: image names; each pair once.
        image_dir: the photos.
        image_fingerprints: image name -> fingerprint of its content (and mask).
        correspondence_path: the correspondence file to make or complete.
        mask_dir: COLMAP-style masks; matches on masked-out pixels are dropped.
        weights_fingerprint: changes when the matcher's weights change.

    Returns:
        The pairs that were matched now.
    """
    staged = StagedFile(correspondence_path)
    todo, wanted = _missing(staged, pairs, conf, weights_fingerprint, image_fingerprints)
    if todo:
        matcher = load_matcher()

        def encode(name: str) -> tuple[EncodedImage, np.ndarray | None]:
            image = read_image(Path(image_dir) / name)
            size = (image.shape[1], image.shape[0])
            return matcher.encode(image), read_mask(mask_dir, name, size) if mask_dir else None

        cached = _Cache(encode, lambda item: item[0].num_bytes)
        for name0, name1 in tqdm(_ordered_for_reuse(todo), desc="Matching", unit="pair"):
            (encoded0, mask0), (encoded1, mask1) = cached.get(name0), cached.get(name1)
            matches = matcher.match_encoded(encoded0, encoded1)
            matches = matches.select(
                inside_mask(matches.keypoints0, mask0) & inside_mask(matches.keypoints1, mask1)
            )
            entry: dict[str, np.ndarray] = {
                "keypoints0": matches.keypoints0.astype(np.float32),
                "keypoints1": matches.keypoints1.astype(np.float32),
                "scores": matches.scores.astype(np.float32),
            }
            staged.add({names_to_pair(name0, name1): entry}, wanted)
    staged.commit()
    return todo


def _source(features: h5py.File, name: str) -> str:
    if name not in features:
        raise InputError(f"{features.filename} holds no features of image {name!r}")
    return str(features[name].attrs.get("fingerprint", "imported"))


def _missing(
    staged: StagedFile,
    pairs: Sequence[Pair],
    conf: Conf,
    weights_fingerprint: str,
    sources: Mapping[str, str],
) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs to match, and the fingerprint each pair's group must have."""
    settings = fingerprint(dict(conf.model), getattr(conf, "preprocessing", {}))
    wanted = {
        names_to_pair(*pair): fingerprint(settings, weights_fingerprint, *map(sources.get, pair))
        for pair in pairs
    }
    todo = [
        pair
        for pair in pairs
        if not staged.is_current(names_to_pair(*pair), wanted[names_to_pair(*pair)])
    ]
    outdated = sum(names_to_pair(*pair) in staged for pair in todo)
    if outdated:
        logger.info(
            "%d pairs in %s are matched again: the photos, the matcher's settings or its weights "
            "have changed",
            outdated,
            staged.path.name,
        )
    return todo, wanted


def _ordered_for_reuse(pairs: Sequence[Pair]) -> list[Pair]:
    """Order pairs so that those of one first photo follow each other."""
    return sorted(pairs)


def _num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


class _Cache(Generic[Value]):
    """Values computed on demand; the least recently used are dropped beyond a limit of bytes."""

    def __init__(self, compute: Callable[[str], Value], num_bytes: Callable[[Value], int]) -> None:
        self._compute = compute
        self._num_bytes = num_bytes
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._total_bytes = 0

    def get(self, name: str) -> Value:
        if name not in self._values:
            self._values[name] = self._compute(name)
            self._total_bytes += self._num_bytes(self._values[name])
        self._values.move_to_end(name)
        # The two photos of the current pair always stay.
        while len(self._values) > 2 and self._total_bytes > ENCODED_CACHE_BYTES:
            _, dropped = self._values.popitem(last=False)
            self._total_bytes -= self._num_bytes(dropped)
        return self._values[name]
