"""What the pipelines share: checked photos, remembered steps, matching of a list of pairs."""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import pycolmap

from pipelines.command import run_guarded
from pipelines.notes import Steps, read_memory, write_memory
from pipelines.options import RETRIEVALS, make_executor
from sfm_matchers import colmap_matching, revisions
from sfm_matchers.confs import Conf, DetectorFreeConf, SparseConf, load_conf
from sfm_matchers.diagnosis import listed
from sfm_matchers.errors import (
    InputError,
    MissingExtraError,
    OutputError,
    PhotoChangedError,
    SfmMatchersError,
    one_line,
)
from sfm_matchers.features import extract_features
from sfm_matchers.hloc import INSTALL, is_installed
from sfm_matchers.images import (
    WayUp,
    decoded_size,
    find_images,
    mask_names,
    mask_path,
    photo_fingerprint,
    read_mask_and_way_up,
)
from sfm_matchers.keypoints import AggregationOptions, Existing, aggregate
from sfm_matchers.localization import (
    LocalizedQuery,
    Query,
    Status,
    count_by_status,
    failed_query,
    intrinsics_by_source,
)
from sfm_matchers.matching import Executor, match_features, match_images
from sfm_matchers.models import read_model
from sfm_matchers.pairs import query_pairs
from sfm_matchers.protocols import SparseMatcher
from sfm_matchers.retrieval import extract_vlad
from sfm_matchers.storage import (
    GOES_ON,
    Pair,
    exclusive,
    file_fingerprint,
    fingerprint,
    is_of_full_disk,
    read_pairs,
    remove_staged,
    write_pairs,
)
from sfm_matchers.triangulation import triangulate

logger = logging.getLogger("sfm_matchers.pipelines")


MAX_BEGINNINGS = 3  # of a run whose photos change while it works


def run_command(outputs: Path, job: Callable[[], int], shard: str | None = None) -> int:
    """Run a command line that writes to `outputs`, alone there.

    Args:
        outputs: the folder.
        job: the work. It is begun again, and resumes, where photos change in the meantime.
        shard: which part of the matching this run does, beside other runs.

    Returns:
        See `run_guarded`.
    """
    # On large photos and damaged EXIF; what cannot be used is said by `open_photo`.
    warnings.filterwarnings("ignore", module="PIL")

    def alone() -> int:
        with exclusive(outputs, shard):
            for _ in range(MAX_BEGINNINGS - 1):
                try:
                    return job()
                except PhotoChangedError as error:
                    logger.warning("%s. Beginning again with the photos as they are now", error)
            return job()

    def within_the_disk() -> int:
        temporary = Path(tempfile.gettempdir())
        try:
            return alone()
        except SfmMatchersError:
            raise
        except Exception as error:  # libraries fail in any way on a full disk
            if not is_of_full_disk(error, outputs, temporary):
                raise
            raise OutputError(
                f"no space is left for {outputs} or for temporary files in {temporary} "
                f"({one_line(error)}). {GOES_ON}"
            ) from error

    return run_guarded(within_the_disk)


class CheckedPhoto(NamedTuple):
    """A photo that can be decoded.

    Attributes:
        size: (width, height).
        fingerprint: of its content and mask.
        stamps: of the files of both, when they were read; see `MatchingJob.check_photos_unchanged`.
    """

    size: tuple[int, int]
    fingerprint: str
    stamps: tuple[Stamp | None, ...] = ()


Stamp = tuple[int, int, int]


def _stamp(path: Path | None) -> Stamp | None:
    """What changes when a file is written or replaced."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _stamps(image_dir: Path, name: str, mask_dir: Path | None) -> tuple[Stamp | None, ...]:
    return (_stamp(image_dir / name), _stamp(mask_path(mask_dir, name, image_dir)))


def check_photos(
    image_dir: Path,
    outputs: Path,
    names: Sequence[str] | None = None,
    mask_dir: Path | None = None,
) -> dict[str, CheckedPhoto]:
    """Return the photos that can be decoded, with a fingerprint of their content and mask.

    The others are named in the log. Photos seen before, by content, are not decoded again.

    Args:
        image_dir: the photos.
        outputs: ``photos.json`` there remembers them.
        names: photos to look at; all in the folder if None. One that is missing is left out.
        mask_dir: a folder of masks, or one mask for all, see `images.mask_path`.

    Raises:
        InputError: there is no such folder.
    """
    cache_path = outputs / "photos.json"
    cache = read_memory(cache_path)
    if names is None:
        names = find_images(image_dir, outputs=outputs, mask_dir=mask_dir)

    stamps = {name: _stamps(image_dir, name, mask_dir) for name in names}

    def check(name: str) -> dict[str, Any]:
        if not (image_dir / name).is_file():
            return {"unreadable": f"{image_dir / name} is missing"}
        try:
            content = file_fingerprint(image_dir / name)
        except OSError as error:
            return {"unreadable": f"{image_dir / name} cannot be read: {error.strerror}"}
        if _is_note(cache.get(name), content):
            return dict(cache[name])
        try:
            size = decoded_size(image_dir / name)
        except InputError as error:
            return {"content": content, "unreadable": str(error)}
        return {"content": content, "size": list(size)}

    with ThreadPoolExecutor() as executor:
        found = dict(zip(names, executor.map(check, names), strict=True))
    write_memory(cache_path, {**cache, **found})
    for name in names:
        if "unreadable" in found[name]:
            logger.warning("left out: %s", found[name]["unreadable"])
    return {
        name: CheckedPhoto(
            tuple(found[name]["size"]),
            photo_fingerprint(found[name]["content"], mask_dir, name, image_dir),
            stamps[name],
        )
        for name in names
        if "unreadable" not in found[name]
    }


def _is_note(note: Any, content: str) -> bool:
    """Whether an earlier run noted this of a photo of this content, or something else did."""
    if not isinstance(note, dict) or note.get("content") != content:
        return False
    size = note.get("size")
    is_size = isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
    return is_size or isinstance(note.get("unreadable"), str)


def check_masks(mask_dir: Path, image_dir: Path, photos: Mapping[str, CheckedPhoto]) -> None:
    """Say how many photos have a mask, and how it lies on those that EXIF turns.

    Args:
        mask_dir: see `images.mask_path`.
        image_dir: the photos.
        photos: from `check_photos`.

    Raises:
        InputError: there are no masks, none is of a photo, one does not fit its photo, or they do
            not tell whether they are of photos as stored or set upright.
    """
    if not mask_dir.exists():
        raise InputError(f"{mask_dir} is neither a folder of masks nor a mask")
    names_by_way: dict[WayUp, list[str]] = {way_up: [] for way_up in WayUp}
    for name, photo in photos.items():
        mask = read_mask_and_way_up(mask_dir, name, photo.size, image_dir)
        if mask is not None:
            names_by_way[mask.way_up].append(name)
    masked = {name for names in names_by_way.values() for name in names}
    without = sorted(photos.keys() - masked)
    if photos and not masked:
        expected = " or ".join(str(mask_dir / mask) for mask in mask_names(without[0]))
        raise InputError(f"{mask_dir} holds no mask of any photo: expected for example {expected}")
    logger.info(
        "%d of %d photos have a mask%s",
        len(masked),
        len(photos),
        f"; none: {listed(without)}" if without else "",
    )
    _explain_turned_masks(names_by_way, one_for_all=mask_dir.is_file())


def _explain_turned_masks(names_by_way: Mapping[WayUp, list[str]], *, one_for_all: bool) -> None:
    upright, either = names_by_way[WayUp.UPRIGHT], names_by_way[WayUp.EITHER]
    stored = names_by_way[WayUp.STORED]
    if upright:
        logger.info(
            "%d mask(s) fit the photo set upright, and are turned as its EXIF tells: %s",
            len(upright),
            listed(upright),
        )
    if not either:
        return
    remedy = "remove the EXIF orientation of these photos if their masks fit the stored pixels"
    if stored or (one_for_all and names_by_way[WayUp.SAME]):
        raise InputError(
            f"the masks of {listed(either)} fit the photo as stored and as EXIF sets it upright; "
            f"other masks are of photos as stored, so this cannot be told: {remedy}"
        )
    logger.warning(
        "%d mask(s) fit the photo as stored and as EXIF sets it upright; they are taken for masks "
        "of the upright photo, as viewers show it (%s): %s",
        len(either),
        listed(either),
        remedy,
    )


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
    """

    conf: Conf
    weights: str
    device: str
    executor: Executor


def choose_matching(
    options: MatchingOptions, shard: str | None = None, *, merge: bool = False
) -> Matching:
    """Look at the options of the matching, before anything takes time.

    Raises:
        InputError: unknown matcher or device, or options that contradict each other.
    """
    conf = load_conf(str(options.matcher))
    device = _device(conf, options.device)
    executor = make_executor(options.workers, options.ray, device, shard, merge=merge)
    return Matching(conf, str(options.weights), device, executor)


def start_job(
    matching: Matching,
    image_dir: Path,
    outputs: Path,
    names: Sequence[str] | None = None,
    *,
    mask_dir: Path | None = None,
    drop_raw_matches: bool = False,
) -> MatchingJob:
    """Check the photos; arguments as of `check_photos` and `MatchingJob`."""
    outputs.mkdir(parents=True, exist_ok=True)
    steps = Steps(outputs / "steps.json")
    photos = steps.timed("photos", lambda: check_photos(image_dir, outputs, names, mask_dir))
    if mask_dir is not None:
        check_masks(mask_dir, image_dir, photos)
    return MatchingJob(matching, image_dir, outputs, photos, steps, mask_dir, drop_raw_matches)


@dataclass(frozen=True)
class MatchingJob:
    """What all matching of one run has in common.

    Attributes:
        matching: how to match.
        image_dir: the photos.
        outputs: where all files go.
        photos: from `check_photos`.
        steps: notes the seconds.
        mask_dir: a folder of masks, or one mask for all photos.
        drop_raw_matches: delete a detector-free matcher's correspondences once keypoints are made
            of them. They are not needed until pairs, photos or settings change; then all pairs
            are matched again.
    """

    matching: Matching
    image_dir: Path
    outputs: Path
    photos: Mapping[str, CheckedPhoto]
    steps: Steps
    mask_dir: Path | None = None
    drop_raw_matches: bool = False

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
        stem = conf.output.replace("matches-", "feats-")
        feature_path = self.outputs / (f"{stem}_{label}.h5" if map_features else f"{stem}.h5")
        match_path = self.outputs / f"{conf.output}_{label}.h5"
        source = fingerprint(
            revisions.MATCHES,
            revisions.KEYPOINTS,
            pairs,
            self.fingerprints(_names(pairs)),
            asdict(replace(conf, min_inlier_ratio=0)),  # only verification looks at it
            _weights_fingerprint(self.matching),
        )
        raw_path = _correspondence_path(match_path)
        if raw_path.exists() or not self.steps.is_done(match_path.name, source):
            self._match_images(conf, pairs, raw_path)
            self._aggregate(conf, pairs, raw_path, feature_path, match_path, existing, map_features)
        if self.drop_raw_matches:
            self.steps.set_done(match_path.name, source, feature_path, match_path)
            remove_staged(raw_path)
        return feature_path, match_path

    def match_share(self, pairs: Sequence[Pair], label: str) -> None:
        """Match what the executor does of the pairs; other runs do the rest."""
        if isinstance(self.conf, SparseConf):
            self._match_features(self.conf, pairs, label)
        else:
            match_path = self.outputs / f"{self.conf.output}_{label}.h5"
            self._match_images(self.conf, pairs, _correspondence_path(match_path))

    def check_photos_unchanged(self) -> None:
        """Look whether the photos and masks are those that the run has begun with.

        Raises:
            PhotoChangedError: some are not, so what was made of them is of no use.
        """
        changed = {}
        for name, photo in self.photos.items():
            if not photo.stamps or photo.stamps == _stamps(self.image_dir, name, self.mask_dir):
                continue
            path = self.image_dir / name
            try:
                content = photo_fingerprint(
                    file_fingerprint(path), self.mask_dir, name, self.image_dir
                )
            except OSError:
                content = ""
            if content != photo.fingerprint:
                changed[name] = f"{path} has changed since this run began"
        if changed:
            raise PhotoChangedError(changed)

    def fingerprints(self, names: Iterable[str]) -> dict[str, str]:
        """Return the fingerprint of each of some photos."""
        return {name: self.photos[name].fingerprint for name in names}

    def extract(self, features: Mapping[str, Any], names: Iterable[str]) -> Path:
        """Extract the features of photos; return the feature file."""
        feature_path = self.outputs / f"{features['output']}.h5"
        wanted = self.fingerprints(names)
        self.steps.timed(
            "features",
            lambda: extract_features(
                features, self.image_dir, wanted, feature_path, self.mask_dir, self.matching.device
            ),
        )
        return feature_path

    def _match_features(
        self, conf: SparseConf, pairs: Sequence[Pair], label: str
    ) -> tuple[Path, Path]:
        feature_path = self.extract(conf.features, _names(pairs))
        match_path = self.outputs / f"{conf.output}_{label}.h5"
        self.steps.timed(
            "matching",
            lambda: match_features(
                conf,
                partial(_load_sparse_matcher, conf, self.matching.weights, self.matching.device),
                pairs,
                feature_path,
                match_path,
                _weights_fingerprint(self.matching),
                self.matching.executor,
            ),
        )
        return feature_path, match_path

    def _match_images(self, conf: DetectorFreeConf, pairs: Sequence[Pair], raw_path: Path) -> None:
        from sfm_matchers.matchers import load_detector_free_matcher

        self.steps.timed(
            "matching",
            lambda: match_images(
                conf,
                partial(
                    load_detector_free_matcher, conf, self.matching.weights, self.matching.device
                ),
                pairs,
                self.image_dir,
                self.fingerprints(_names(pairs)),
                raw_path,
                self.mask_dir,
                _weights_fingerprint(self.matching),
                self.matching.executor,
            ),
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
        self.steps.timed(
            "keypoints",
            lambda: aggregate(
                pairs,
                raw_path,
                feature_path,
                match_path,
                options,
                {name: self.photos[name].size for name in _names(pairs)},
                fixed_features=[map_features] if map_features else [],
                existing=existing,
            ),
        )


# COLMAP's matcher needs no torch, whose import takes as long as matching twenty pairs.


def _is_colmaps(conf: Conf) -> bool:
    return conf.model.get("name") == colmap_matching.NAME


def _device(conf: Conf, device: str) -> str:
    if device == "auto" and _is_colmaps(conf):
        return "cpu"
    from sfm_matchers.matchers import default_device

    return default_device(device)


def _load_sparse_matcher(conf: SparseConf, weights: str, device: str) -> SparseMatcher:
    if _is_colmaps(conf):
        return colmap_matching.load(conf)
    from sfm_matchers.matchers import load_sparse_matcher

    return load_sparse_matcher(conf, weights, device)


def _weights_fingerprint(matching: Matching) -> str:
    if _is_colmaps(matching.conf):
        return ""
    from sfm_matchers.matchers import matcher_weights_fingerprint

    return matcher_weights_fingerprint(matching.conf, matching.weights)


def _correspondence_path(match_path: Path) -> Path:
    return match_path.with_name(match_path.name.replace("matches-", "correspondences-"))


def _names(pairs: Iterable[Pair]) -> list[str]:
    return sorted({name for pair in pairs for name in pair})


# ---------------------------------------------------------------------------------------------
# Localization


def triangulated_map(
    job: MatchingJob, reference: pycolmap.Reconstruction, pairs: Sequence[Pair], label: str
) -> tuple[pycolmap.Reconstruction, Path]:
    """Match pairs of photos of a map and triangulate into its poses.

    Returns:
        The model, which lies in ``map-<conf>`` of the outputs, and its feature file.
    """
    usable = _photos_of_map(job, reference)
    known = [pair for pair in pairs if usable.issuperset(pair)]
    if not known:
        raise InputError(
            "no two photos of the map can be matched: they are missing, are not those its model "
            "was made of, or have nothing in common there; the messages above tell"
        )
    feature_path, match_path = job.match(known, label)
    model_dir = job.outputs / f"map-{job.conf.name}"
    # The matches carry the fingerprints of their features. The file of features may have those of
    # queries too, which do not matter here.
    views = [
        (image.name, image.cam_from_world().matrix().tolist(), image.camera.params.tolist())
        for image in reference.images.values()
        if image.has_pose
    ]
    source = fingerprint(
        revisions.TRIANGULATION, known, file_fingerprint(match_path), sorted(views)
    )
    if job.steps.is_done(model_dir.name, source):
        return read_model(model_dir), feature_path
    model = job.steps.timed(
        "triangulation",
        lambda: triangulate(reference, model_dir, job.image_dir, known, feature_path, match_path),
    )
    job.steps.set_done(model_dir.name, source, model_dir)
    return model, feature_path


def _photos_of_map(job: MatchingJob, reference: pycolmap.Reconstruction) -> set[str]:
    """Names of the map's photos that can be decoded and have the size of their camera."""
    names = set()
    for image in reference.images.values():
        if image.name not in job.photos:
            continue
        width, height = job.photos[image.name].size
        camera = image.camera
        if (width, height) == (camera.width, camera.height):
            names.add(image.name)
        else:
            logger.warning(
                "left out: %s has %d x %d pixels, its camera in the map %d x %d: give the photos "
                "that the map was made of",
                image.name,
                width,
                height,
                camera.width,
                camera.height,
            )
    return names


def retrieve(
    job: MatchingJob,
    queries: Sequence[str],
    database: Sequence[str],
    num_matched: int,
    retrieval: str = "vlad",
) -> tuple[list[Pair], str]:
    """Find the most similar photos of a map for each query.

    Args:
        job: its photos.
        queries: names.
        database: names of the photos of the map.
        num_matched: neighbours of each query.
        retrieval: ``vlad`` needs no download; the others are hloc's, and need hloc.

    Returns:
        Pairs (query, photo of the map), best first, and a label for the list.

    Raises:
        MissingExtraError: hloc is needed and not installed.
        InputError: unknown kind of retrieval.
    """
    if retrieval not in RETRIEVALS:
        known = ", ".join(RETRIEVALS)
        raise InputError(f"unknown retrieval {retrieval!r}, expected one of {known}")
    names = [*database, *queries]
    if retrieval == "vlad":
        descriptor_path = describe_with_vlad(job, names, database)
    else:
        descriptor_path = job.steps.timed(
            "retrieval", lambda: _describe_with_hloc(job, names, retrieval)
        )
    pairs = query_pairs(queries, database, descriptor_path, num_matched)
    label = f"pairs-query-{retrieval}{num_matched}"
    write_pairs(job.outputs / f"{label}.txt", pairs)
    return pairs, label


def describe_with_vlad(
    job: MatchingJob, names: Sequence[str], database: Sequence[str] | None = None
) -> Path:
    """Global descriptors of photos, from SIFT, by a vocabulary learned from those of `database`
    (all if None); return the feature file."""
    sift = cast(SparseConf, load_conf("sift"))
    sift_path = job.extract(sift.features, names)
    descriptor_path = job.outputs / "global-feats-vlad.h5"
    fingerprints = job.fingerprints(names)
    job.steps.timed(
        "retrieval",
        lambda: extract_vlad(names, sift_path, descriptor_path, fingerprints, database),
    )
    return descriptor_path


def _describe_with_hloc(job: MatchingJob, names: list[str], retrieval: str) -> Path:
    """Global descriptors by one of hloc's networks; hloc keeps those it has made before."""
    if not is_installed():
        raise MissingExtraError(
            f"--retrieval {retrieval} needs hloc: {INSTALL}; or take vlad, or --loc_pairs FILE"
        )
    module = importlib.import_module("hloc.extract_features")
    conf = module.confs[retrieval]
    return Path(module.main(conf, job.image_dir, job.outputs, image_list=names))


def choose_query_pairs(
    job: MatchingJob,
    queries: Sequence[Query],
    database: Iterable[str],
    listed: str | Path | None,
    num_matched: int,
    retrieval: str,
) -> tuple[list[Pair], str]:
    """Pairs (query, photo of the map): those of the file `listed`, or the most similar ones.

    Photos of `database` that are not there have no part. See `listed_pairs` and `retrieve`.
    """
    names = [query.name for query in queries]
    known = [name for name in database if name in job.photos]
    if listed:
        return listed_pairs(job, listed, names, known)
    return retrieve(job, names, known, num_matched, retrieval)


def listed_pairs(
    job: MatchingJob, path: str | Path, queries: Iterable[str], database: Iterable[str]
) -> tuple[list[Pair], str]:
    """Read (query, photo of the map) pairs; those of unknown photos are left out, and counted.

    Raises:
        InputError: no such file, or no pair is of a query and a photo of the map.
    """
    path, queries, database = Path(path), set(queries), set(database)
    if not path.is_file():
        raise InputError(f"{path} is not a file of pairs")
    listed = read_pairs(path, queries | database)
    pairs = [pair for pair in listed if pair[0] in queries and pair[1] in database]
    if not pairs:
        raise InputError(f"{path} holds no pair of a query and a photo of the map")
    if len(pairs) < len(listed):
        logger.warning(
            "%s: %d of %d pairs name a photo that is not there",
            path,
            len(listed) - len(pairs),
            len(listed),
        )
    return pairs, path.stem


def split_readable(
    job: MatchingJob, queries: Sequence[Query]
) -> tuple[list[Query], list[LocalizedQuery]]:
    """Queries whose photo can be decoded and has the size of its camera; the others, failed."""
    readable, unreadable = [], []
    for query in queries:
        camera_size = (query.camera.width, query.camera.height)
        if query.name not in job.photos:
            reason = "its photo is missing or cannot be decoded"
        elif job.photos[query.name].size != camera_size:
            width, height = job.photos[query.name].size
            reason = (
                f"its photo has {width} x {height} pixels, its intrinsics are for "
                f"{camera_size[0]} x {camera_size[1]}"
            )
        else:
            readable.append(query)
            continue
        unreadable.append(failed_query(query, reason, [], None))
    return readable, unreadable


def print_localization(
    results: Sequence[LocalizedQuery],
    conditions: Mapping[str, Callable[[str], bool]],
    files: Mapping[str, Path],
    seconds: Mapping[str, float],
) -> None:
    """Print the counts by status, for each condition and all; where each file is; the seconds.

    Args:
        results: of all queries.
        conditions: name of a condition -> whether a query, by name, is of it.
        files: what it is -> where it is.
        seconds: step -> seconds.
    """
    rows = {
        condition: [result for result in results if belongs(result.name)]
        for condition, belongs in conditions.items()
    }
    if len(rows) != 1:
        rows["all queries"] = list(results)
    for condition, chosen in rows.items():
        counts = ", ".join(f"{count} {status}" for status, count in count_by_status(chosen).items())
        posed = [r for r in chosen if r.status in (Status.LOCALIZED, Status.LOW_CONFIDENCE)]
        inliers = (
            f"; median inliers {np.median([r.num_inliers for r in posed]):.0f}" if posed else ""
        )
        print(f"{condition}: {len(chosen)} queries: {counts}{inliers}")
    for line in intrinsics_by_source(results):
        print(f"intrinsics: {line}")
    for name, path in files.items():
        print(f"{name}: {path}")
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
