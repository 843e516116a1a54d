"""Damaged and foreign files: whatever a file holds, our own errors are all that leaves its reader.

Each reader gets files that were valid before bytes, fields or datasets of theirs were changed.
`SFM_MATCHERS_FUZZ_SECONDS=60` goes on for a minute per kind of file, with other changes each time.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sfm_matchers.confs import CONF_DIR, load_conf
from sfm_matchers.errors import SfmMatchersError
from sfm_matchers.evaluation.pair_lists import read_hpatches, read_posed_pairs
from sfm_matchers.files.hdf5 import list_groups, open_h5
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.keypoints.aggregation import aggregate
from sfm_matchers.keypoints.grid import AggregationOptions
from sfm_matchers.localization.in_depth_scans import read_scan, read_transformation
from sfm_matchers.localization.nvm import read_nvm
from sfm_matchers.localization.poses import read_poses
from sfm_matchers.localization.query_files import read_image_names, read_queries
from sfm_matchers.mapping.database import import_features
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.matching import match_features
from sfm_matchers.pairs.policies import pairs_from_file
from sfm_matchers.pairs.retrieval import extract_vlad, most_similar
from sfm_matchers.photos.cameras import group_photos, read_photo_header
from sfm_matchers.photos.images import decoded_size, read_image
from sfm_matchers.photos.masks import read_mask
from sfm_matchers.weights import load_state_dict_file
from sfm_matchers.weights.registry import WeightsMetadata

pytestmark = pytest.mark.filterwarnings("ignore:::PIL", "ignore:loadtxt")

SECONDS = float(os.environ.get("SFM_MATCHERS_FUZZ_SECONDS", "0"))


def try_all(contents: st.SearchStrategy[Any], read: Callable[[Any], object]) -> None:
    """Call `read` with drawn contents; only errors of ours, of one line, may leave it."""

    @settings(
        max_examples=500 if SECONDS else 40,
        derandomize=not SECONDS,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def attempt(content: Any) -> None:
        message = ""
        try:
            read(content)
        except SfmMatchersError as error:
            message = str(error)
        assert "\n" not in message

    end = time.monotonic() + SECONDS
    attempt()
    while time.monotonic() < end:
        attempt()


# ---------------------------------------------------------------------------------------------
# Files of bytes and of text

ODD_NUMBERS = ["nan", "inf", "-1", "0", "1", "7", "1e999", "1e308", "0x1", "1_0", "٣", str(2**63)]
ODD_WORDS = [
    "é",
    "\ufeff",
    "\x00",
    "#",
    "[]",
    "{}",
    "null",
    "!",
    "&",
    "*",
    ":",
    "- ",
    "'",
    '"',
    "..",
]
ODD_SPACES = ["", " ", "\n", "\r\n", "\t", "\u2028", "\x0c", "\xa0"]
ODD_BYTES = [b"", b"\0", b"\0" * 8, b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff"]


@st.composite
def damaged_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Change, remove, insert or repeat some bytes; cut the file off."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 2, 4, 8, 64, len(content)]))
        repeated = bytes(content[start:end])
        odd = st.sampled_from([*ODD_BYTES, 2 * repeated])
        content[start:end] = draw(st.one_of(odd, st.binary(max_size=8)))
    return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2, 9]))])


@st.composite
def damaged_text(draw: st.DrawFn, valid: bytes) -> bytes:
    """Put odd fields, line ends and letters into a text file; or leave out some of it."""
    parts = re.split(r"(\s+)", valid.decode())
    for _ in range(draw(st.integers(1, 4))):
        odd = st.one_of(
            st.sampled_from(ODD_NUMBERS + ODD_WORDS + ODD_SPACES + parts), st.text(max_size=5)
        )
        parts[draw(st.integers(0, len(parts) - 1))] = draw(odd)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16"]))
    text = "".join(parts[: draw(st.sampled_from([len(parts), len(parts) // 2]))])
    return text.encode(encoding, "surrogatepass")


@dataclass(frozen=True)
class Format:
    """A kind of file: its name, a valid one, what reads it, and whether it is of text."""

    file_name: str
    valid: bytes
    read: Callable[[Path], object]
    is_text: bool = True


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()


def photo(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Model 5"
    exif.get_ifd(0x8769).update({0x920A: 4.25, 0xA434: "Lens"})
    exif[0x8769] = exif.get_ifd(0x8769)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return saved(lambda file: image.save(file, form, exif=exif))


def hdf5(groups: dict[str, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        for group, arrays in groups.items():
            for key, array in arrays.items():
                content[f"{group}/{key}"] = array
    return file.getvalue()


def read_photo(path: Path) -> None:
    group_photos({"a": read_photo_header(path), "b": read_photo_header(path)})
    decoded_size(path)
    read_image(path)


def read_as_nvm(path: Path) -> None:
    path.with_name("intrinsics.txt").write_bytes(QUERIES)
    read_nvm(path, path.with_name("intrinsics.txt"))


def read_as_intrinsics(path: Path) -> None:
    path.with_name("model.nvm").write_bytes(NVM)
    read_nvm(path.with_name("model.nvm"), path)


def read_as_pairs(path: Path) -> None:
    pairs, unknown = pairs_from_file(path, ["a.jpg", "b.jpg", "my photo.jpg"])
    assert len(set(map(frozenset, pairs + unknown))) == len(pairs + unknown)


def read_as_homography(path: Path) -> None:
    folder = path.parent / "v_wall"
    folder.mkdir(exist_ok=True)
    for k in range(2, 7):
        (folder / f"H_1_{k}").write_bytes(path.read_bytes())
    read_hpatches(path.parent)


def mat_v5(order: str = "<", *, compressed: bool = False) -> bytes:
    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)

    flags, sizes = struct.pack(f"{order}II", 6, 0), struct.pack(f"{order}iii", 4, 5, 3)
    numbers = np.ones((4, 5, 3), f"{order}f8").tobytes()
    parts = [(6, flags), (5, sizes), (1, b"XYZcut"), (9, numbers)]
    array = element(14, b"".join(element(*part) for part in parts))
    packed = zlib.compress(array)
    header = 124 * b" " + struct.pack(f"{order}HH", 0x0100, 0x4D49)
    return header + (struct.pack(f"{order}II", 15, len(packed)) + packed if compressed else array)


def scene_info() -> dict[str, Any]:
    pair_infos = np.empty(1, dtype=object)
    pair_infos[0] = ((0, 1), 0.5, (0.1, 0.2))
    return {
        "image_paths": np.array(["a.jpg", "b.jpg"], dtype=object),
        "depth_paths": np.array(["a.h5", "b.h5"], dtype=object),
        "intrinsics": np.array([np.eye(3)] * 2),
        "poses": np.array([np.eye(4)] * 2),
        "pair_infos": pair_infos,
    }


PAIRS = b"a.jpg b.jpg\n\n# comment\nmy photo.jpg a.jpg\r\nb.jpg a.jpg\na.jpg a.jpg\n"
QUERIES = b"a.jpg SIMPLE_RADIAL 64 48 50 32 24 0.1\nb.jpg PINHOLE 64 48 50 51 32 24\n"
NVM = (
    b"NVM_V3\n\n2\na.jpg 50 1 0 0 0 0 0 0 0.1 0\nb.jpg 50 0.9 0.1 0 0 1 0 0 0 0\n\n"
    b"1\n0.5 0.5 4 200 100 50 2 0 0 3.5 4.5 1 0 -3.5 2.5\n"
)
MATRIX = b"1 0 0 5\n0 1 0 6\n0 0 1 7\n0 0 0 1\n"
INTRINSICS = b"50 0 32 0 50 24 0 0 1 "
POSED_PAIRS = b"a.jpg b.jpg 0 1 " + 2 * INTRINSICS + b"1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"
TENSORS = {"matcher.weight": torch.ones(2, 3), "matcher.bias": torch.zeros(2)}
HEADER = {
    "network": "jamma",
    "features": "",
    "licence": "MIT",
    "trained_on": "photos",
    "steps": "5",
    "metrics": '{"auc": 1}',
    "note": "",
}
FORMATS = {
    "pairs": Format("pairs.txt", PAIRS, read_as_pairs),
    "queries": Format("queries.txt", QUERIES, read_queries),
    "queries-skipping": Format(
        "queries.txt", QUERIES, lambda path: read_queries(path, skip_bad_lines=True)
    ),
    "image-list": Format("names.txt", PAIRS, read_image_names),
    "poses": Format("poses.txt", b"a.jpg 1 0 0 0 1 2 3\nb.jpg 0.9 0.1 0 0 4 5 6\n", read_poses),
    "nvm": Format("model.nvm", NVM, read_as_nvm),
    "intrinsics": Format("intrinsics.txt", QUERIES, read_as_intrinsics),
    "transformation": Format("trans.txt", b"line\n" * 7 + MATRIX, read_transformation),
    "conf": Format(
        "conf.yaml",
        Path(CONF_DIR, "sift+mambaglue.yaml").read_bytes(),
        lambda path: load_conf(str(path)),
    ),
    "posed-pairs": Format(
        "pairs.txt", POSED_PAIRS, lambda path: read_posed_pairs(path, path.parent)
    ),
    "homography": Format("H", b"1 0 5\n0 1 6\n0 0 1\n", read_as_homography),
    "scene-info": Format(
        "scene.npz",
        saved(lambda file: np.savez(file, **scene_info())),
        lambda path: read_posed_pairs(path, path.parent),
        is_text=False,
    ),
    "scene-info-pickled": Format(
        "scene.npz",
        pickle.dumps(scene_info()),
        lambda path: read_posed_pairs(path, path.parent),
        is_text=False,
    ),
    "mat-v5": Format("scan.mat", mat_v5(), read_scan, is_text=False),
    "mat-v5-big-endian": Format("scan.mat", mat_v5(">"), read_scan, is_text=False),
    "mat-v5-compressed": Format("scan.mat", mat_v5(compressed=True), read_scan, is_text=False),
    "mat-v7.3": Format(
        "scan.mat", hdf5({"/": {"XYZcut": np.ones((3, 5, 4))}}), read_scan, is_text=False
    ),
    "checkpoint": Format(
        "weights.ckpt",
        saved(lambda file: torch.save({"state_dict": TENSORS}, file)),
        load_state_dict_file,
        is_text=False,
    ),
    "checkpoint-pickled": Format(
        "weights.pth",
        saved(lambda file: torch.save(TENSORS, file, _use_new_zipfile_serialization=False)),
        load_state_dict_file,
        is_text=False,
    ),
    "safetensors": Format(
        "weights.safetensors",
        safetensors.torch.save(TENSORS, HEADER),
        lambda path: (WeightsMetadata.from_file(path), load_state_dict_file(path)),
        is_text=False,
    ),
    "jpeg": Format("photo.jpg", photo("JPEG"), read_photo, is_text=False),
    "png": Format("photo.jpg", photo("PNG"), read_photo, is_text=False),
    "tiff": Format("photo.jpg", photo("TIFF"), read_photo, is_text=False),
    "webp": Format("photo.jpg", photo("WEBP"), read_photo, is_text=False),
    "mask": Format(
        "photo.jpg.png",
        photo("PNG"),
        lambda path: read_mask(path.parent, "photo.jpg", (16, 24)),
        is_text=False,
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_raise_errors_of_ours(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    path = tmp_path / form.file_name

    def read(content: bytes) -> None:
        path.write_bytes(content)
        form.read(path)

    read(form.valid)
    contents = damaged_text(form.valid) if form.is_text else damaged_bytes(form.valid)
    try_all(st.one_of(contents, st.binary(max_size=64)), read)


@dataclass
class Code:
    """Makes a folder when it is unpickled."""

    folder: Path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint-pickled", "scene-info-pickled", "npz"])
def test_pickled_code_is_refused_and_never_runs(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "made by the file"
    code = {"model": TENSORS | {"code": Code(folder)}}
    content = {
        "checkpoint": lambda: saved(lambda file: torch.save(code, file)),
        "checkpoint-pickled": lambda: saved(
            lambda file: torch.save(code, file, _use_new_zipfile_serialization=False)
        ),
        "scene-info-pickled": lambda: pickle.dumps(scene_info() | {"poses": Code(folder)}),
        "npz": lambda: saved(
            lambda file: np.savez(file, poses=np.array([Code(folder)], dtype=object))
        ),
    }[name]()
    form = FORMATS.get(name, FORMATS["scene-info"])
    path = tmp_path / form.file_name

    def read(content: bytes) -> None:
        path.write_bytes(content)
        form.read(path)

    with pytest.raises(SfmMatchersError, match=r"refused|mkdir"):
        read(content)
    try_all(damaged_bytes(content), read)
    assert not folder.exists()


# ---------------------------------------------------------------------------------------------
# Files of HDF5 datasets

NAMES = ("a.jpg", "b.jpg")
NUM_KEYPOINTS = 4
DTYPES = ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u8", "?", "c8", "S3", "O", "f4,i4"]
SHAPES = [(), (0,), (1,), (2,), (4,), (5,), (0, 2), (4, 2), (2, 4), (4, 3), (128, 4), (2, 2, 2)]
VALUES = [0, 1, 3, -1, 2**31, -(2**31), 2**62, np.inf, np.nan]

Groups = dict[str, dict[str, Any]]


def valid_features() -> Groups:
    rng = np.random.default_rng(0)
    return {
        name: {
            "keypoints": rng.uniform(0, 60, (NUM_KEYPOINTS, 2)).astype(np.float32),
            "descriptors": rng.uniform(0, 0.2, (128, NUM_KEYPOINTS)).astype(np.float16),
            "scores": np.ones(NUM_KEYPOINTS, np.float32),
            "scales": np.ones(NUM_KEYPOINTS, np.float32),
            "oris": np.zeros(NUM_KEYPOINTS, np.float32),
            "image_size": np.array([64, 48]),
        }
        for name in NAMES
    }


def valid_matches() -> Groups:
    matches0 = np.array([1, -1, 0, 3], np.int32)
    scores = np.ones(NUM_KEYPOINTS, np.float16)
    return {"a.jpg/b.jpg": {"matches0": matches0, "matching_scores0": scores}}


def valid_correspondences() -> Groups:
    points = np.arange(8, dtype=np.float32).reshape(4, 2)
    scores = np.ones(4, np.float32)
    return {"a.jpg/b.jpg": {"keypoints0": points, "keypoints1": points + 1, "scores": scores}}


def valid_descriptors() -> Groups:
    return {name: {"global_descriptor": np.ones(8, np.float16)} for name in NAMES}


@st.composite
def odd_arrays(draw: st.DrawFn) -> Any:
    """An array of any type and shape; or what is no array."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.sampled_from([None, h5py.Empty("f4"), h5py.SoftLink("/nowhere"), "text"]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    array = np.zeros(draw(st.sampled_from(SHAPES)), dtype)
    if dtype.kind == "O":
        array = np.full(array.shape, "text", dtype=h5py.string_dtype())
    elif dtype.kind in "iufb":
        with np.errstate(all="ignore"):
            array.flat[:1] = np.array(draw(st.sampled_from(VALUES))).astype(dtype)
    return array


@st.composite
def damaged_groups(draw: st.DrawFn, valid: Groups) -> Groups:
    """Leave out datasets or groups; put odd arrays, links and groups in their places."""
    groups = {name: dict(arrays) for name, arrays in valid.items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(groups)))
        key = draw(st.sampled_from(sorted(valid[name])))
        if draw(st.booleans()):
            groups[name][key] = draw(odd_arrays())
        else:
            groups[name].pop(key, None)
    return groups


def write_groups(path: Path, groups: Groups) -> None:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            group = file.create_group(name)
            for key, array in arrays.items():
                if array is None:
                    group.create_group(f"{key}/{key}")
                else:
                    group[key] = array


def read_features_file(path: Path) -> None:
    for output in ("matches.h5", "global.h5", "database.db"):
        path.with_name(output).unlink(missing_ok=True)
    conf = load_conf("sift")
    pairs, match_path = [NAMES], path.with_name("matches.h5")
    for use in (
        lambda: match_features(
            conf, lambda: load_sparse_matcher(conf, "", "cpu"), pairs, path, match_path
        ),
        lambda: extract_vlad(NAMES, path, path.with_name("global.h5"), dict.fromkeys(NAMES, "")),
        lambda: import_features(new_database(path.with_name("database.db")), path),
        lambda: list_groups(path),
        lambda: StagedFile(path).commit(),
    ):
        with contextlib.suppress(SfmMatchersError):
            use()


def read_match_file(path: Path) -> None:
    with open_h5(path) as file:
        for names in (NAMES, NAMES[::-1]):
            matches, scores = file.matches(*names, (NUM_KEYPOINTS, NUM_KEYPOINTS))
            assert matches.shape == (len(scores), 2)
            assert ((matches >= 0) & (matches < NUM_KEYPOINTS)).all()


def read_correspondence_file(path: Path) -> None:
    outputs = [path.with_name(name) for name in ("features.h5", "matches.h5")]
    for output in outputs:
        output.unlink(missing_ok=True)
    aggregate([NAMES], path, *outputs, AggregationOptions(), dict.fromkeys(NAMES, (64, 48)))


def new_database(path: Path) -> Path:
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 50.0, 64, 48)
        database.write_camera(camera, use_camera_id=True)
        for name in NAMES:
            database.write_image(pycolmap.Image(name=name, camera_id=1))
    return path


LAYOUTS: dict[str, tuple[Groups, Callable[[Path], object]]] = {
    "features": (valid_features(), read_features_file),
    "matches": (valid_matches(), read_match_file),
    "correspondences": (valid_correspondences(), read_correspondence_file),
    "global-descriptors": (
        valid_descriptors(),
        lambda path: most_similar(NAMES, NAMES, path, 1),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_foreign_datasets_raise_errors_of_ours(name: str, tmp_path: Path) -> None:
    valid, use = LAYOUTS[name]
    path = tmp_path / "file.h5"

    def read(groups: Groups) -> None:
        write_groups(path, groups)
        use(path)

    read(valid)
    try_all(damaged_groups(valid), read)


@pytest.mark.parametrize("name", LAYOUTS)
def test_damaged_hdf5_files_raise_errors_of_ours(name: str, tmp_path: Path) -> None:
    valid, use = LAYOUTS[name]
    path = tmp_path / "file.h5"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        use(path)

    try_all(damaged_bytes(hdf5(valid)), read)
