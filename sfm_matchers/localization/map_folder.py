"""A map that is ready: one folder with all that localization needs, without the photos.

    map.json        what it is: matcher and its settings, hashes of the files below
    model/          a COLMAP model whose keypoints are those of features.h5, point by point
    features.h5     local features of its photos, in hloc's layout
    retrieval.h5    VLAD: vocabulary (K, D), names (N,), descriptors (N, K * D)
    weights/        the matcher's checkpoint, where it does not come with the package

The folder can be copied or renamed as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfm_matchers.confs import SparseConf, parse_conf
from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.replacing import files_below
from sfm_matchers.files.text import read_text, write_text, written_whole
from sfm_matchers.machine.progress import progress
from sfm_matchers.pairs.retrieval import (
    by_similarity,
    learn_vocabulary,
    sampled_descriptors,
    vlad_descriptor,
)

FORMAT = 1
ABOUT, MODEL, FEATURES, RETRIEVAL, WEIGHTS = (
    "map.json",
    "model",
    "features.h5",
    "retrieval.h5",
    "weights",
)
# Bytes. Larger files are hashed by `check` only: to open a map takes seconds, not minutes.
HASHED_WHEN_OPENED = 64 << 20


@dataclass(frozen=True)
class MapSettings:
    """What map.json says.

    Attributes:
        matcher: name of the conf.
        conf: its content, as in a conf file.
        weights: ``bundled``, ``official``, or a file relative to the map.
        weights_fingerprint: of the matcher's weights; "" if it needs none.
        source: fingerprint of what the map was made of.
        num_photos: with a pose.
        num_points: 3D points.
        files: path relative to the map -> {"bytes": ..., "hash": ...}.
        format: of the folder.
        earth: (3, 3) east, north and up, a row each, in the model's world; None: unknown.
    """

    matcher: str
    conf: Mapping[str, Any]
    weights: str
    weights_fingerprint: str
    source: str
    num_photos: int
    num_points: int
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    format: int = FORMAT
    earth: Sequence[Sequence[float]] | None = None

    def load_conf(self, where: str) -> SparseConf:
        """The conf of features and matcher."""
        conf = parse_conf(self.matcher, dict(self.conf), where)
        if not isinstance(conf, SparseConf):
            raise InputError(f"{where}: {self.matcher} matches photos, which a map does not have")
        return conf


def conf_content(conf: SparseConf) -> dict[str, Any]:
    """A conf as a conf file has it."""
    content = conf.content()
    del content["name"]
    return {"kind": "sparse", **content}


def is_map(path: str | Path) -> bool:
    """Whether a folder is a map that is ready."""
    return (Path(path) / ABOUT).is_file()


def read_settings(path: str | Path) -> MapSettings:
    """Read map.json.

    Raises:
        InputError: the folder is no map, or one of another version.
    """
    about = Path(path) / ABOUT
    if not about.is_file():
        raise InputError(f"{path} is no map: make one by sfm-matchers map build")
    try:
        content = json.loads(read_text(about))
        checksum = content.pop("checksum", None)  # earlier versions wrote none
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} is a map of format {content['format']}, this version reads {FORMAT}: "
                "build it again"
            )
        if checksum not in (None, fingerprint(content)):
            raise ValueError("its checksum is of another content")
        return MapSettings(**content)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{about} is damaged: build the map again ({one_line(error)})") from error


def write_settings(path: Path, settings: MapSettings) -> None:
    """Write map.json, with the hashes of all other files of the map: the last step of a build."""
    files = {
        file.relative_to(path).as_posix(): {
            "bytes": file.stat().st_size,
            "hash": content_hash(file),
        }
        for part in (MODEL, FEATURES, RETRIEVAL, WEIGHTS)
        for file in files_below(path / part)
    }
    content = json.loads(json.dumps({**asdict(settings), "files": files}))  # as it is read
    checksum = fingerprint(content)
    write_text(path / ABOUT, json.dumps({**content, "checksum": checksum}, indent=1))


def check(path: Path, settings: MapSettings, largest: float = np.inf) -> None:
    """Compare the files of a map with what map.json says: sizes, and hashes up to `largest` bytes.

    Raises:
        InputError: one is missing or another, as after a copy that was cut off.
    """
    for name, known in settings.files.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file} is missing: copy the map as a whole")
        try:
            size = file.stat().st_size
            is_same = size == known["bytes"]
            if is_same and size <= largest:
                is_same = content_hash(file) == known["hash"]
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        if not is_same:
            raise InputError(f"{file} is not what the map was made with: copy or build it again")


@dataclass(frozen=True)
class VladIndex:
    """Global descriptors of a map's photos, and what makes those of queries.

    Attributes:
        names: of the photos.
        vocabulary: (K, D) float32.
        descriptors: (N, K * D) float32 of float16 precision.
    """

    names: Sequence[str]
    vocabulary: np.ndarray
    descriptors: np.ndarray

    def most_similar(self, descriptors: np.ndarray, count: int) -> list[str]:
        """Names of the photos most similar to one with local descriptors (D, N), best first."""
        if not self.names:
            return []
        order, _ = by_similarity(_vlad(descriptors, self.vocabulary)[None], self.descriptors)
        return [self.names[index] for index in order[0, :count]]

    def similar_to(self, name: str) -> list[str]:
        """Names of the other photos, those most similar to one of them first."""
        row = self.names.index(name)
        order, _ = by_similarity(self.descriptors[row : row + 1], self.descriptors)
        return [self.names[index] for index in order[0] if index != row]


def _vlad(stored: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """VLAD of a photo's descriptors (D, N), in the precision in which files keep it."""
    vlad = vlad_descriptor(sampled_descriptors(stored), vocabulary)
    return vlad.astype(np.float16).astype(np.float32)


def make_index(names: Sequence[str], feature_path: Path) -> VladIndex:
    """Learn a vocabulary from the features of a map's photos, and describe them by it.

    Raises:
        InputError: a photo has no descriptors.
    """
    with open_h5(feature_path) as file:
        vocabulary = learn_vocabulary(file, names, None)
        rows = []
        for name in progress(names, title="Global descriptors", unit="photo"):
            stored = file.finite_numbers(name, "descriptors")
            if stored is None:
                raise InputError(f"{feature_path} holds no descriptors of {name!r}")
            rows.append(_vlad(stored, vocabulary))
    return VladIndex(list(names), vocabulary, np.stack(rows))


def write_index(path: Path, index: VladIndex) -> None:
    """Write retrieval.h5."""
    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file["vocabulary"] = index.vocabulary
        file["descriptors"] = index.descriptors.astype(np.float16)
        file.create_dataset("names", data=list(index.names), dtype=h5py.string_dtype())


def read_index(path: Path) -> VladIndex:
    """Read retrieval.h5.

    Raises:
        InputError: it is missing or damaged.
    """
    with open_h5(path) as file:
        names = file.texts("names")
        vocabulary, descriptors = file.numbers("", "vocabulary"), file.numbers("", "descriptors")
    if (
        vocabulary is None
        or descriptors is None
        or descriptors.shape != (len(names), vocabulary.size)
    ):
        raise InputError(f"{path} is damaged: build the map again")
    return VladIndex(names, vocabulary.astype(np.float32), descriptors.astype(np.float32))
