"""A map in memory that localizes photo after photo.

Example:
    >>> from sfm_matchers import Localizer
    >>> localizer = Localizer("MAP")  # doctest: +SKIP
    >>> found = localizer.localize("new.jpg")  # doctest: +SKIP
    >>> found.status, found.cam_from_world, found.num_inliers, found.reason  # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from sfm_matchers.errors import InputError
from sfm_matchers.features.base import UPRIGHT
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.files.hdf5 import Hdf5File
from sfm_matchers.localization import map_folder
from sfm_matchers.localization.certainty import is_certain
from sfm_matchers.localization.in_model import localize_query
from sfm_matchers.localization.indexed_model import IndexedModel
from sfm_matchers.localization.local_features import LocalFeatures, features_of_map
from sfm_matchers.localization.look_alikes import LookAlikes
from sfm_matchers.localization.poses import (
    LocalizationOptions,
    LocalizedQuery,
    Query,
    Status,
    failed_query,
    log_outcome,
    name_fault,
)
from sfm_matchers.localization.query_intrinsics import query_of_map, size_fault
from sfm_matchers.mapping.models import read_model
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.quarter_turns import MIN_TURN_RATIO
from sfm_matchers.matchers.registry import (
    default_device,
    load_sparse_matcher,
    matcher_weights_fingerprint,
)
from sfm_matchers.matching.engine import matched_features
from sfm_matchers.pairs.retrieval import mutual_neighbours, ranked_by_votes
from sfm_matchers.pairs.sequences import with_neighbours
from sfm_matchers.photos.images import decoded_size, read_image_and_orientation
from sfm_matchers.photos.resizing import network_size, turned, unturned

FIRST_PHOTOS = 2  # matched before anything is estimated, where few may be enough
# Inliers of a pose that needs no more photos, if several agree on it, see `certainty`.
ENOUGH_INLIERS = 100
OVER_ASKED = 2  # so many times the photos are retrieved, and ranked again by their features
# A query that is not localized is looked at in other positions, small: it may lie on its side. Then
# it must share so many keypoints with the map.
TURNED_SIDE, MIN_TURNED_VOTES = 512, 20
# A photo that shares such a part of what the first one shares with a query may show its true place.
RIVAL_SHARE = 0.5
CACHE_BYTES = 1 << 30  # of local features of the map's photos; the others are read when needed
Photo = str | Path | np.ndarray


@dataclass(frozen=True)
class _Seen:
    """A query with its local features.

    Attributes:
        query: of the photo as it is.
        pixels: RGB (H, W, 3).
        features: of the photo after `quarters` turns, as a feature file has them.
        quarters: counter-clockwise.
    """

    query: Query
    pixels: np.ndarray
    features: dict[str, np.ndarray]
    quarters: int = 0

    @property
    def tried(self) -> int:
        """After how many quarter turns the front-end saw the photo: EXIF may set it upright."""
        return int(self.features.get(UPRIGHT, [self.quarters])[0])

    @property
    def keypoints(self) -> np.ndarray:
        """(N, 2) in pixels of the photo as it is."""
        size = (self.pixels.shape[1], self.pixels.shape[0])
        return unturned(self.features["keypoints"], self.quarters, size)


class Localizer:
    """Poses of photos in a map that `pipelines.map` has built. Any thread may call it.

    Networks work for one thread at a time, with all the threads of torch; poses are estimated side
    by side. Where a query is matched with all its photos (`enough_inliers` is None), the estimates
    are those of ``pipelines.localize`` with the same retrieved photos.

    Args:
        path: folder of the map.
        device: auto, cpu, cuda or mps.
        num_loc: photos of the map that each query is matched with.
        enough_inliers: retrieved photos are ranked again by their local features and matched in
            this order, and no more of them once the query is localized with so many inliers and
            several photos agree on its pose, see `certainty`. Several times as fast where the
            place is well known; the estimate is then that of fewer photos. None: all are matched.
        options: how poses are estimated.

    Raises:
        InputError: the folder is no map, or damaged.
        WeightsError: the matcher's weights are not here, or others than those of the map.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        num_loc: int = 20,
        enough_inliers: int | None = ENOUGH_INLIERS,
        options: LocalizationOptions | None = None,
    ) -> None:
        if num_loc < 1:
            raise InputError(f"num_loc is {num_loc}: a query needs a photo to be matched with")
        self.path, self.num_loc, self.enough_inliers = Path(path), num_loc, enough_inliers
        self.options = options or LocalizationOptions()
        self.settings = map_folder.read_settings(self.path)
        map_folder.check(self.path, self.settings, map_folder.HASHED_WHEN_OPENED)
        self.conf = self.settings.load_conf(str(self.path / map_folder.ABOUT))
        device = default_device(device)
        weights = self.settings.weights
        if weights.startswith(f"{map_folder.WEIGHTS}/"):
            weights = str(self.path / weights)
        if matcher_weights_fingerprint(self.conf, weights) != self.settings.weights_fingerprint:
            raise InputError(
                f"{path} was built with other weights of {self.conf.name} ({weights}): build it "
                "again, or take the version it was built with"
            )
        self.model = read_model(self.path / map_folder.MODEL)
        self._lookup = IndexedModel(self.model)
        self._index = map_folder.read_index(self.path / map_folder.RETRIEVAL)
        self._extractor = load_extractor(self.conf.features.model, device, self.conf.features.where)
        self._matcher = load_sparse_matcher(self.conf, weights, device)
        self._file = Hdf5File(self.path / map_folder.FEATURES)
        self._cached: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self._cached_bytes = 0
        self._networks = threading.Lock()
        self._look_alikes = LookAlikes(
            self._lookup, self._features_of, self._similar_to, self.options.max_error
        )

    @property
    def most_cached_bytes(self) -> int:
        """What local features of the map's photos may come to fill, beside what is there."""
        return min(CACHE_BYTES, (self.path / map_folder.FEATURES).stat().st_size)

    def __repr__(self) -> str:
        """Return where the map is, and how large."""
        photos, points = self.model.num_images(), self.model.num_points3D()
        return f"Localizer('{self.path}', {photos:,} photos, {points:,} points, {self.conf.name})"

    def close(self) -> None:
        """Let go of the map's files."""
        with self._networks:
            self._file.close()

    def __enter__(self) -> Localizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def localize(
        self, image: Photo, camera: pycolmap.Camera | None = None, *, name: str = ""
    ) -> LocalizedQuery:
        """Localize one photo.

        Args:
            image: a file, or RGB (H, W, 3) uint8.
            camera: its intrinsics, which then stay; else those of the map's cameras, of EXIF (of a
                file) and estimates are compared, as ``pipelines.localize`` does.
            name: what the result is called; that of the file by default.

        Returns:
            Pose, status, inliers, covariance, and in `reason` what speaks against the pose.

        Raises:
            InputError: the photo cannot be read.
        """
        return self.localize_all([image], [camera], names=[name])[0]

    def localize_all(
        self,
        images: Sequence[Photo],
        cameras: Sequence[pycolmap.Camera | None] | None = None,
        *,
        names: Sequence[str] | None = None,
        sequence: bool = False,
    ) -> list[LocalizedQuery]:
        """Localize photos; see `localize`.

        Args:
            images: files or arrays.
            cameras: of each photo, or None.
            names: of each photo; "" for the default.
            sequence: they are frames of one walk, in their order: photos of the map that are like
                the neighbours of a frame are matched with it too.
        """
        cameras = [None] * len(images) if cameras is None else cameras
        names = [""] * len(images) if names is None else names
        queries = [self.query(*photo) for photo in zip(images, cameras, names, strict=True)]
        return self.localize_queries(queries, images, sequence=sequence)

    def query(self, image: Photo, camera: pycolmap.Camera | None = None, name: str = "") -> Query:
        """The query of a photo: its name, and what its intrinsics may be.

        Raises:
            InputError: the photo cannot be read.
        """
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise InputError(
                    f"an image is RGB (H, W, 3) uint8, found {image.shape} {image.dtype}"
                )
            size, path = (image.shape[1], image.shape[0]), None
        else:
            path = Path(image)
            size = decoded_size(path)
        name = name or (path.name if path else "query")
        if camera is not None:
            return Query(name, camera)
        return query_of_map(name, size, path, self.model)

    def localize_queries(
        self, queries: Sequence[Query], images: Sequence[Photo], *, sequence: bool = False
    ) -> list[LocalizedQuery]:
        """Localize queries whose intrinsics are chosen; arguments as of `localize_all`.

        Raises:
            InputError: a photo cannot be read.
        """
        results: list[LocalizedQuery | None] = [None] * len(queries)
        if sequence:
            seen = [self._look(*both) for both in zip(queries, images, strict=True)]
            lists = [self._retrieve(one) for one in seen]
            lists = with_neighbours(lists)
            results = [
                one if isinstance(one, LocalizedQuery) else self._localize_any_way_up(one, names)
                for one, names in zip(seen, lists, strict=True)
            ]
        else:

            def work(index: int) -> LocalizedQuery:
                one = self._look(queries[index], images[index])
                if isinstance(one, LocalizedQuery):
                    return one
                return self._localize_any_way_up(one, self._retrieve(one))

            with ThreadPoolExecutor(2) as threads:  # one matches, the other estimates a pose
                results = list(threads.map(work, range(len(queries))))
        found = [result for result in results if result is not None]
        for result, image in zip(found, images, strict=True):
            if not isinstance(image, np.ndarray):
                name_fault(result, Path(image))
            log_outcome(result)
        return found

    def _look(self, query: Query, image: Photo) -> _Seen | LocalizedQuery:
        """A query with its local features, or failed where its intrinsics are of another size."""
        if isinstance(image, np.ndarray):
            pixels, orientation = image, 1
        else:
            pixels, orientation = read_image_and_orientation(Path(image))
        if fault := size_fault(query, (pixels.shape[1], pixels.shape[0])):
            return failed_query(query, fault, [], None)
        with self._networks:
            return _Seen(query, pixels, self._extract(pixels, orientation))

    def _extract(self, pixels: np.ndarray, orientation: int = 1) -> dict[str, np.ndarray]:
        """Local features of a photo of an EXIF orientation; the lock is held."""
        preprocessing = self.conf.features.preprocessing
        return extract_image(self._extractor, preprocessing, pixels, orientation=orientation)

    def _retrieve(self, seen: _Seen | LocalizedQuery) -> list[str]:
        if isinstance(seen, LocalizedQuery):
            return []
        if self.enough_inliers is None:
            return self._similar(seen.features, self.num_loc)
        with self._networks:
            return [name for _, name in self._ranked(seen.features)]

    def _similar(self, features: dict[str, np.ndarray], count: int) -> list[str]:
        names = self._index.most_similar(features["descriptors"], count)
        return [name for name in names if name in self._lookup.image_ids]

    def _similar_to(self, name: str) -> list[str]:
        """Other photos of the map, those most similar to one of them first."""
        names = self._index.similar_to(name)
        return [other for other in names if other in self._lookup.image_ids]

    def _ranked(self, features: dict[str, np.ndarray]) -> list[tuple[int, str]]:
        """Photos of the map with what they seem to share with a query; the lock is held."""
        names = self._similar(features, OVER_ASKED * self.num_loc)
        votes = {name: self._num_shared(features, name) for name in names}
        return [(votes[name], name) for name in ranked_by_votes(votes)[: self.num_loc]]

    def _num_shared(self, features: dict[str, np.ndarray], name: str) -> int:
        """How many keypoints with a 3D point a query seems to share with a photo of the map."""
        has_point = self._lookup.point_ids(name) >= 0
        stored = self._features(name)["descriptors"][:, has_point]
        return mutual_neighbours(features["descriptors"], stored, self.conf.features.name)

    def _localize_any_way_up(self, seen: _Seen, names: list[str]) -> LocalizedQuery:
        """Localize a query, in another position where it is not localized as it is."""
        found = self._localize(seen, names)
        if found.status is Status.LOCALIZED or self.conf.matcher == colmap_matching.NAME:
            return found
        with self._networks:
            quarters = self._way_up(seen.pixels, seen.tried)
            if quarters is None:
                return found
            features = self._extract(turned(seen.pixels, quarters))
        again = replace(seen, features=features, quarters=quarters)
        other = self._localize(again, self._retrieve(again))
        return other if other.num_inliers > found.num_inliers else found

    def _way_up(self, pixels: np.ndarray, tried: int) -> int | None:
        """Quarter turns after which a photo shares clearly more with the map than after those that
        were tried, if there are; the lock is held."""
        height, width = pixels.shape[:2]
        size = network_size((width, height), TURNED_SIDE, multiple=1)
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        votes = []
        for quarters in range(4):
            ranked = self._ranked(self._extract(turned(small, quarters)))
            counts = sorted(count for count, _ in ranked)
            votes.append(sum(counts[-FIRST_PHOTOS:]))
        best = int(np.argmax(votes))
        enough = max(MIN_TURNED_VOTES, MIN_TURN_RATIO * votes[tried])
        return best if best != tried and votes[best] >= enough else None

    def _localize(self, seen: _Seen, names: list[str]) -> LocalizedQuery:
        """Localize a query, and doubt a pose that rests on what the map has elsewhere too."""
        found = self._estimate_until_certain(seen, names)
        features = LocalFeatures.of_query(seen.keypoints, seen.features["descriptors"])
        self._look_alikes.check(found, features)
        return found

    def _estimate_until_certain(self, seen: _Seen, names: list[str]) -> LocalizedQuery:
        """Match a query with photos of the map, as many as it takes, and estimate its pose."""
        if self.enough_inliers is None:
            return self._estimate(seen, names, {})
        names = list(names)
        found: dict[str, np.ndarray] = {}
        for count in range(FIRST_PHOTOS, len(names)):
            result = self._estimate(seen, names[:count], found)
            by_photo = (self._points_seen(seen, name, found[name]) for name in names[:count])
            extent = self._lookup.extent
            if is_certain(result, by_photo, extent, self.enough_inliers, self.options):
                other = self._rival(seen, names, count)
                if other is None:
                    return result
                names.insert(count, names.pop(other))
        return self._estimate(seen, names, found)

    def _rival(self, seen: _Seen, names: list[str], count: int) -> int | None:
        """Index of a photo that shows no point of the first `count` ones, but shares as much with
        the query: it may show the place where the query was really taken."""
        known = np.concatenate([self._lookup.point_ids(name) for name in names[:count]])
        known = known[known >= 0]
        with self._networks:
            enough = RIVAL_SHARE * self._num_shared(seen.features, names[0])
            for index in range(count, len(names)):
                if np.isin(self._lookup.point_ids(names[index]), known).any():
                    continue
                if self._num_shared(seen.features, names[index]) >= enough:
                    return index
        return None

    def _points_seen(
        self, seen: _Seen, name: str, matches0: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints of a query, as COLMAP has them, and the 3D points they match by one photo."""
        index = np.flatnonzero(matches0 >= 0)
        point_ids = self._lookup.point_ids(name)[matches0[index]]
        index, point_ids = index[point_ids >= 0], point_ids[point_ids >= 0]
        points = [self.model.points3D[point_id].xyz for point_id in point_ids.tolist()]
        keypoints = seen.keypoints[index] + np.float32(0.5)
        return keypoints, np.array(points, dtype=np.float64).reshape(-1, 3)

    def _estimate(
        self, seen: _Seen, names: list[str], found: dict[str, np.ndarray]
    ) -> LocalizedQuery:
        """Match a query with those photos that are not in `found`, which keeps the matches."""
        # Names of the map's photos do not begin with a NUL.
        key = "\0"
        with self._networks:
            pairs = [(key, name) for name in names if name not in found]

            def features_of(name: str) -> dict[str, np.ndarray]:
                return seen.features if name == key else self._features(name)

            for pair, arrays in matched_features(self._matcher, pairs, features_of):
                found[pair[1]] = arrays["matches0"]

        def matches_with(name: str, counts: tuple[int, int]) -> np.ndarray:
            matches0 = found[name].astype(np.int64)
            index = np.flatnonzero(matches0 >= 0)
            return np.stack([index, matches0[index]], axis=1)

        keypoints = seen.keypoints
        try:
            return localize_query(
                seen.query, names, self._lookup, keypoints, matches_with, self.options
            )
        except InputError as error:
            return failed_query(seen.query, str(error), names, self._lookup.pose)

    def _features_of(self, name: str) -> LocalFeatures | None:
        """Those of a photo of the map."""
        with self._networks:
            return features_of_map(self._features(name), self._lookup, name)

    def _features(self, name: str) -> dict[str, np.ndarray]:
        """Those of a photo of the map; the lock is held."""
        if name in self._cached:
            self._cached.move_to_end(name)
            return self._cached[name]
        read = self._file.features(name)
        self._cached[name] = read
        self._cached_bytes += _num_bytes(read)
        while self._cached_bytes > CACHE_BYTES and len(self._cached) > 1:
            self._cached_bytes -= _num_bytes(self._cached.popitem(last=False)[1])
        return read


def _num_bytes(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())
