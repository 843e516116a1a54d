"""COLMAP's own matcher of SIFT descriptors, on a list of pairs.

COLMAP finds nearest neighbours by an index of each photo's descriptors, which takes twice as long
to make as a pair to match, and pycolmap gives it to none but those who have a database. So photos
and pairs are written to a temporary one. COLMAP fills it by as many threads as this process has;
each pair is read back as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.confs import SparseConf, build
from sfm_matchers.errors import InputError
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.files.space import Space, check_space
from sfm_matchers.machine.threads import num_threads
from sfm_matchers.matchers.protocols import Arrays, NamedPair, SparseMatches

NAME = "colmap_nearest_neighbor"  # in a conf

DIMENSION = 128
BYTES_OF_LENGTH_1 = 512  # COLMAP stores so many times a descriptor of length 1, cut off at 255

PHOTOS_AT_ONCE = 128  # half a gigabyte, where each has 10,000 descriptors
LOOK_SECONDS = 0.2  # between two looks for pairs that are done
BYTES_BETWEEN_LOOKS = 16 << 20  # of matches, at most


class ColmapNearestNeighborMatcher:
    """Mutual nearest neighbours of SIFT descriptors with ratio test, by COLMAP on the CPU.

    Neighbours are approximate, as everywhere in COLMAP, and the same every time.

    Args:
        ratio: largest allowed ratio of the distance to the nearest descriptor over the one to the
            second nearest, asked for in both directions.
        max_distance: largest allowed distance between matched descriptors, whose length is 1.
        num_threads: of COLMAP; -1: one per core.

    Raises:
        InputError: a bound is not above 0.
    """

    def __init__(
        self, ratio: float = 0.8, max_distance: float = 0.7, num_threads: int = -1
    ) -> None:
        for name, bound in (("ratio", ratio), ("max_distance", max_distance)):
            if not bound > 0:
                raise InputError(f"{name} is {bound}, it must be above 0")
        self._options = pycolmap.FeatureMatchingOptions(
            num_threads=num_threads, skip_geometric_verification=True
        )
        self._options.sift.max_ratio = ratio
        self._options.sift.max_distance = max_distance

    def match(self, features0: Arrays, features1: Arrays) -> SparseMatches:
        """See `SparseMatcher.match`. Scores are the cosines between matched descriptors."""
        both = {"0": features0, "1": features1}
        return next(self.match_list([("0", "1")], both.__getitem__))[1]

    def match_list(
        self, pairs: Sequence[NamedPair], features_of: Callable[[str], Arrays]
    ) -> Iterator[tuple[NamedPair, SparseMatches]]:
        """See `SparseListMatcher.match_list`."""
        for some in _of_few_photos(pairs):
            names = sorted({name for pair in some for name in pair})
            yield from self._match(some, {name: _to_bytes(features_of(name)) for name in names})

    def _match(
        self, pairs: Sequence[NamedPair], descriptors: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[NamedPair, SparseMatches]]:
        """Match pairs of photos by the descriptors (N, 128) uint8 of each."""
        stop = pycolmap.CancellationToken()
        with (
            scratch_folder() as folder,
            pycolmap.Database.open(folder / "database.db") as database,
            ThreadPoolExecutor(1) as thread,
        ):
            database_path = folder / "database.db"
            num_descriptors = sum(map(len, descriptors.values()))
            Space(database_path).take((DIMENSION + 16) * num_descriptors + 1000 * len(descriptors))
            ids = _write_descriptors(database, descriptors)
            waiting = {pair: (ids[pair[0]], ids[pair[1]]) for pair in pairs}
            list_path = folder / "pairs.txt"
            list_path.write_text("".join(f"{id0} {id1}\n" for id0, id1 in waiting.values()))
            run = thread.submit(self._run, database_path, list_path, stop)
            try:
                while waiting:
                    check_space(database_path, BYTES_BETWEEN_LOOKS)
                    if wait([run], LOOK_SECONDS).done:
                        run.result()  # raises what went wrong
                        done = list(waiting)
                    else:
                        block = islice(waiting, PHOTOS_AT_ONCE)
                        done = [pair for pair in block if database.exists_matches(*waiting[pair])]
                    for pair in done:
                        matches = database.read_matches(*waiting.pop(pair))
                        yield pair, _to_arrays(matches, *(descriptors[name] for name in pair))
            finally:
                stop.cancel()

    def _run(self, database_path: Path, list_path: Path, stop: pycolmap.CancellationToken) -> None:
        # COLMAP takes one block after the other, keeps as many photos at hand as a block has pairs,
        # and can be stopped between two.
        pairing = pycolmap.ImportedPairingOptions(
            match_list_path=list_path, block_size=PHOTOS_AT_ONCE
        )
        few_matches_too = pycolmap.TwoViewGeometryOptions(min_num_inliers=0)
        with quiet_colmap():
            pycolmap.match_image_pairs(
                database_path, self._options, pairing, few_matches_too, cancellation_token=stop
            )


def load(conf: SparseConf) -> ColmapNearestNeighborMatcher:
    """Build the matcher of a conf whose model has the name `NAME`.

    Raises:
        InputError: unknown option, or one that cannot be.
    """
    # A process of several has its share of the cores.
    options = {**conf.options, "num_threads": num_threads()}
    where = f"{conf.where}, model"
    return build(ColmapNearestNeighborMatcher, options, where)


def _of_few_photos(pairs: Sequence[NamedPair]) -> Iterator[list[NamedPair]]:
    """Cut a list into parts of `PHOTOS_AT_ONCE` photos at most."""
    some: list[NamedPair] = []
    names: set[str] = set()
    for pair in pairs:
        if len(names.union(pair)) > PHOTOS_AT_ONCE:
            yield some
            some, names = [], set()
        some.append(pair)
        names.update(pair)
    if some:
        yield some


def _write_descriptors(
    database: pycolmap.Database, descriptors: Mapping[str, np.ndarray]
) -> dict[str, int]:
    """Write photos that consist of descriptors; return their ids."""
    kind = pycolmap.FeatureExtractorType.SIFT
    ids = {}
    with pycolmap.DatabaseTransaction(database):
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 1.0, 1, 1)
        database.write_camera(camera, use_camera_id=True)
        for image_id, (name, array) in enumerate(descriptors.items(), start=1):
            image = pycolmap.Image(name=str(image_id), camera_id=1, image_id=image_id)
            database.write_image(image, use_image_id=True)
            database.write_keypoints(image_id, np.zeros((len(array), 2), np.float32))
            database.write_descriptors(image_id, pycolmap.FeatureDescriptors(kind, array))
            ids[name] = image_id
    return ids


def _to_bytes(features: Arrays) -> np.ndarray:
    """Return descriptors (128, N) of length 1 as COLMAP's (N, 128) uint8; exactly, of COLMAP's own.

    Raises:
        InputError: they are no SIFT descriptors.
    """
    descriptors = np.asarray(features["descriptors"], dtype=np.float32)
    if len(descriptors) != DIMENSION or (descriptors.size and descriptors.min() < 0):
        raise InputError(
            "COLMAP's matcher takes descriptors of SIFT (128 numbers, none below 0); others are "
            "matched by a conf whose model is nearest_neighbor"
        )
    scaled = np.rint(BYTES_OF_LENGTH_1 * descriptors.T).clip(0, 255)
    return np.ascontiguousarray(scaled, dtype=np.uint8)


def _to_arrays(
    matches: np.ndarray, descriptors0: np.ndarray, descriptors1: np.ndarray
) -> SparseMatches:
    """Return ``matches0`` and the matches' cosines of index pairs (M, 2)."""
    index0, index1 = matches.astype(np.int32).reshape(-1, 2).T
    both = [d[i].astype(np.float32) for d, i in ((descriptors0, index0), (descriptors1, index1))]
    lengths = [np.linalg.norm(descriptors, axis=1) for descriptors in both]
    matches0 = np.full(len(descriptors0), -1, np.int32)
    scores0 = np.zeros(len(descriptors0), np.float32)
    matches0[index0] = index1
    scores0[index0] = (both[0] * both[1]).sum(1) / np.maximum(lengths[0] * lengths[1], 1)
    return matches0, scores0
