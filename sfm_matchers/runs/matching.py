"""Matching of a list of pairs, with what it needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from sfm_matchers.confs import Conf, Detail, DetectorFreeConf, SparseConf, load_conf, with_detail
from sfm_matchers.errors import (
    InputError,
    PhotoChangedError,
)
from sfm_matchers.features.extraction import check_front_end, extract_features
from sfm_matchers.files import revisions
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.files.staged import remove_staged
from sfm_matchers.keypoints.aggregation import Existing, aggregate
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.matchers import colmap_matching
from sfm_matchers.matchers.protocols import SparseMatcher
from sfm_matchers.matching import Executor, match_features, match_images
from sfm_matchers.matching.executors import make_executor
from sfm_matchers.photos.checked import (
    CheckedPhoto,
    check_masks,
    check_photos,
    photo_fingerprint,
    stamps_of,
)
from sfm_matchers.runs.workspace import Workspace


class MatchingOptions(Protocol):
    """What the options of all pipelines say about matching."""

    @property
    def matcher(self) -> str | Path: ...

    @property
    def weights(self) -> str | Path: ...

    @property
    def device(self) -> str: ...

    @property
    def workers(self) -> int | None: ...

    @property
    def ray(self) -> str | None: ...


class Matching(NamedTuple):
    """How a run matches.

    Attributes:
        conf: features and matcher.
        weights: ``bundled``, ``official`` or a checkpoint file.
        device: a torch device.
        executor: which processes match.
        detail: how much of the photos is looked at; `conf` has it already.
    """

    conf: Conf
    weights: str
    device: str
    executor: Executor
    detail: Detail = Detail()


def choose_matching(
    options: MatchingOptions,
    shard: str | None = None,
    *,
    merge: bool = False,
    detail: Detail = Detail(),  # noqa: B008  (a value)
) -> Matching:
    """Look at the options of the matching, before anything takes time.

    Raises:
        InputError: unknown matcher or device, or options that contradict each other.
        WeightsError: there are no such weights.
    """
    conf = with_detail(load_conf(str(options.matcher)), detail)
    if _is_colmaps(conf) and str(options.weights) != "bundled":
        raise InputError(f"--weights {options.weights}: {conf.name} has none, leave the option out")
    if isinstance(conf, SparseConf):
        check_front_end(conf.features)
    if isinstance(conf, SparseConf) and _is_colmaps(conf):
        colmap_matching.load(conf)
    else:
        from sfm_matchers.matchers.registry import check_matcher

        check_matcher(conf, str(options.weights))
    device = _device(conf, options.device)
    executor = make_executor(options.workers, options.ray, device, shard, merge=merge)
    return Matching(conf, str(options.weights), device, executor, detail)


def start_job(
    matching: Matching,
    image_dir: Path,
    workspace: Workspace,
    names: Sequence[str] | None = None,
    *,
    mask_dir: Path | None = None,
    drop_raw_matches: bool = False,
) -> MatchingJob:
    """Check the photos; arguments as of `check_photos` and `MatchingJob`."""
    workspace.path.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    with workspace.timed("photos"):
        photos = check_photos(image_dir, workspace.path, names, mask_dir, left_out)
    masked = 0.0 if mask_dir is None else check_masks(mask_dir, image_dir, photos)
    return MatchingJob(
        matching, image_dir, workspace, photos, mask_dir, drop_raw_matches, masked, left_out
    )


@dataclass(frozen=True)
class MatchingJob:
    """What all matching of one run has in common.

    Attributes:
        matching: how to match.
        image_dir: the photos.
        workspace: where all files go, and what is done.
        photos: from `check_photos`.
        mask_dir: a folder of masks, or one mask for all photos.
        drop_raw_matches: delete a detector-free matcher's correspondences once keypoints are made
            of them. They are not needed until pairs, photos or settings change; then all pairs
            are matched again.
        masked: the share of their pixels that masks ignore, in the mean.
        left_out: lines on photos that cannot be used.
    """

    matching: Matching
    image_dir: Path
    workspace: Workspace
    photos: Mapping[str, CheckedPhoto]
    mask_dir: Path | None = None
    drop_raw_matches: bool = False
    masked: float = 0.0
    left_out: Sequence[str] = ()

    @property
    def conf(self) -> Conf:
        """Features and matcher."""
        return self.matching.conf

    def match(
        self,
        pairs: Sequence[Pair],
        label: str,
        *,
        map_features: Path | None = None,
        existing: Existing = "update",
    ) -> tuple[Path, Path]:
        """Match pairs of checked photos; return the feature file and the match file.

        Args:
            pairs: names of photos.
            label: of the list of pairs; part of the names of the files.
            map_features: a feature file whose images keep their keypoints: the photos of a map.
                With a detector-free matcher the others, the queries, get exact points, in a
                feature file of their own.
            existing: see `keypoints.aggregate`.
        """
        if isinstance(self.conf, SparseConf):
            found = self._match_features(self.conf, pairs, label)
        else:
            found = self._match_photos(self.conf, pairs, label, map_features, existing)
        self.check_photos_unchanged()
        return found

    def _match_photos(
        self,
        conf: DetectorFreeConf,
        pairs: Sequence[Pair],
        label: str,
        map_features: Path | None,
        existing: Existing,
    ) -> tuple[Path, Path]:
        """Match without a detector; see `match`."""
        workspace = self.workspace
        feature_path = workspace.features(conf, label if map_features else "")
        match_path = workspace.matches(conf, label)
        raw_path = workspace.correspondences(conf, label)
        source = fingerprint(
            revisions.MATCHES,
            revisions.TURNS,
            revisions.KEYPOINTS,
            pairs,
            self.fingerprints(_names(pairs)),
            replace(conf, min_inlier_ratio=0).content(),  # only verification looks at it
            matcher_weights(self.matching),
        )
        if raw_path.exists() or not workspace.is_done(match_path.name, source):
            self._match_images(conf, pairs, raw_path)
            self._aggregate(conf, pairs, raw_path, feature_path, match_path, existing, map_features)
        if self.drop_raw_matches:
            workspace.set_done(match_path.name, source, feature_path, match_path)
            remove_staged(raw_path)
        return feature_path, match_path

    def match_share(self, pairs: Sequence[Pair], label: str) -> None:
        """Match what the executor does of the pairs; other runs do the rest."""
        if isinstance(self.conf, SparseConf):
            self._match_features(self.conf, pairs, label)
        else:
            raw_path = self.workspace.correspondences(self.conf, label)
            self._match_images(self.conf, pairs, raw_path)

    def check_photos_unchanged(self) -> None:
        """Look whether the photos and masks are those that the run has begun with.

        Raises:
            PhotoChangedError: some are not, so what was made of them is of no use.
        """
        changed = {}
        for name, photo in self.photos.items():
            if not photo.stamps or photo.stamps == stamps_of(self.image_dir, name, self.mask_dir):
                continue
            path = self.image_dir / name
            try:
                content = photo_fingerprint(content_hash(path), self.mask_dir, name, self.image_dir)
            except OSError:
                content = ""
            if content != photo.fingerprint:
                changed[name] = f"{path} has changed since this run began"
        if changed:
            raise PhotoChangedError(changed)

    def fingerprints(self, names: Iterable[str]) -> dict[str, str]:
        """Return the fingerprint of each of some photos."""
        return {name: self.photos[name].fingerprint for name in names}

    def extract(self, conf: SparseConf, names: Iterable[str]) -> Path:
        """Extract the features of photos; return the feature file."""
        path, device = self.workspace.features(conf), self.matching.device
        wanted = self.fingerprints(names)
        with self.workspace.timed("features"):
            extract_features(conf.features, self.image_dir, wanted, path, self.mask_dir, device)
        return path

    def _match_features(
        self, conf: SparseConf, pairs: Sequence[Pair], label: str
    ) -> tuple[Path, Path]:
        feature_path = self.extract(conf, _names(pairs))
        match_path = self.workspace.matches(conf, label)
        with self.workspace.timed("matching"):
            match_features(
                conf,
                partial(_load_sparse_matcher, conf, self.matching.weights, self.matching.device),
                pairs,
                feature_path,
                match_path,
                matcher_weights(self.matching),
                self.matching.executor,
            )
        return feature_path, match_path

    def _match_images(self, conf: DetectorFreeConf, pairs: Sequence[Pair], raw_path: Path) -> None:
        from sfm_matchers.matchers.registry import load_detector_free_matcher

        load = partial(
            load_detector_free_matcher, conf, self.matching.weights, self.matching.device
        )
        with self.workspace.timed("matching"):
            match_images(
                conf,
                load,
                pairs,
                self.image_dir,
                self.fingerprints(_names(pairs)),
                raw_path,
                self.mask_dir,
                matcher_weights(self.matching),
                self.matching.executor,
            )

    def _aggregate(
        self,
        conf: DetectorFreeConf,
        pairs: Sequence[Pair],
        raw_path: Path,
        feature_path: Path,
        match_path: Path,
        existing: Existing,
        map_features: Path | None,
    ) -> None:
        """Make keypoints and matches of the correspondences."""
        options = AggregationOptions(
            conf.max_error,
            conf.cell_size,
            max_keypoints=None if map_features else conf.max_keypoints,
            refined=conf.refine_keypoints,
        )
        with self.workspace.timed("keypoints"):
            aggregate(
                pairs,
                raw_path,
                feature_path,
                match_path,
                options,
                {name: self.photos[name].size for name in _names(pairs)},
                fixed_features=[map_features] if map_features else [],
                existing=existing,
            )


# COLMAP's matcher needs no torch, whose import takes as long as matching twenty pairs.


def _is_colmaps(conf: Conf) -> bool:
    return conf.matcher == colmap_matching.NAME


def _device(conf: Conf, device: str) -> str:
    if device == "auto" and _is_colmaps(conf):
        return "cpu"
    from sfm_matchers.matchers.registry import default_device

    return default_device(device)


def _load_sparse_matcher(conf: SparseConf, weights: str, device: str) -> SparseMatcher:
    if _is_colmaps(conf):
        return colmap_matching.load(conf)
    from sfm_matchers.matchers.registry import load_sparse_matcher

    return load_sparse_matcher(conf, weights, device)


def matcher_weights(matching: Matching) -> str:
    """Return a fingerprint of the weights of the matcher; "" if it has none."""
    if _is_colmaps(matching.conf):
        return ""
    from sfm_matchers.matchers.registry import matcher_weights_fingerprint

    return matcher_weights_fingerprint(matching.conf, matching.weights)


def _names(pairs: Iterable[Pair]) -> list[str]:
    return sorted({name for pair in pairs for name in pair})
