"""Pairs of photos with known geometry, in the layouts of the public benchmarks.

`read_posed_pairs` reads pairs with known poses and tells the layouts apart:

- SuperGlue's text lists (MegaDepth-1500, ScanNet-1500, photo tourism);
- LoFTR's `scene_info` files of MegaDepth, `.npz`, or a folder of them;
- LoFTR's `test.npz` of ScanNet-1500, with `intrinsics.npz` beside it.

Intrinsics are taken as the lists have them. Those of MegaDepth and photo tourism come from COLMAP,
whose pixel (0, 0) is the corner of the image: half a pixel off, which moves a pose by hundredths of
a degree; the published numbers are computed with it.

`read_hpatches` reads the sequences of HPatches: `v_*` and `i_*` folders with photos 1.ppm to 6.ppm
and homographies H_1_2 to H_1_6.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfm_matchers.errors import InputError, one_line
from sfm_matchers.files.names import check_name
from sfm_matchers.files.text import read_text
from sfm_matchers.photos.images import read_image

FloatArray = NDArray[np.float64]
SCANNET_SIZE = (640, 480)  # width and height of the images that ScanNet's intrinsics.npz speaks of
# Sequences of large photos that the papers leave out, since D2-Net (Dusmanu et al., CVPR 2019).
LARGE_SEQUENCES = {
    *("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding"),
    *("v_artisans", "v_astronautis", "v_talent"),
}
PICKLED_NAMES = {"_reconstruct", "scalar", "ndarray", "dtype"}  # numpy's own, for arrays


@dataclass(frozen=True)
class PosedPair:
    """Two photos with their true relative pose.

    Attributes:
        name0: path of image 0 relative to the image folder.
        name1: of image 1.
        intrinsics0: (3, 3) in pixels of the photo as stored.
        intrinsics1: (3, 3).
        cam1_from_cam0: (4, 4).
        quarter_turns: counter-clockwise quarter turns that set photo 0 and photo 1 upright.
    """

    name0: str
    name1: str
    intrinsics0: FloatArray
    intrinsics1: FloatArray
    cam1_from_cam0: FloatArray
    quarter_turns: tuple[int, int] = (0, 0)

    @property
    def essential(self) -> FloatArray:
        """Essential matrix (3, 3) with x1^T E x0 = 0."""
        x, y, z = self.cam1_from_cam0[:3, 3]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        return cross @ self.cam1_from_cam0[:3, :3]


@dataclass(frozen=True)
class HomographyPair:
    """Two photos of a plane, or of the same view in other light.

    Attributes:
        name0: path of image 0 relative to the image folder.
        name1: of image 1.
        homography: (3, 3) from pixels of image 0 to pixels of image 1, photos as stored.
    """

    name0: str
    name1: str
    homography: FloatArray


@dataclass(frozen=True)
class SceneInfo:
    """One of LoFTR's `scene_info` files: photos of a MegaDepth scene and pairs of them.

    Attributes:
        image_paths: relative to the data folder; None for photos that are not used.
        depth_paths: the same, HDF5 files with the dataset `depth`.
        intrinsics: for each photo (3, 3) in its own pixels, or None.
        poses: for each photo cam_from_world (4, 4), or None.
        pairs: (N, 2) indices of photos.
        overlaps: (N,) share of the scene points that a pair has in common, 0 to 1.
    """

    image_paths: list[str | None]
    depth_paths: list[str | None]
    intrinsics: list[FloatArray | None]
    poses: list[FloatArray | None]
    pairs: NDArray[np.int64]
    overlaps: FloatArray

    def posed_pair(self, first: int, second: int) -> PosedPair:
        """The pair of two photos, by their indices.

        Raises:
            InputError: the file does not tell all of the two photos.
        """
        name0, name1 = self.image_paths[first], self.image_paths[second]
        intrinsics0, intrinsics1 = self.intrinsics[first], self.intrinsics[second]
        pose0, pose1 = self.poses[first], self.poses[second]
        if name0 is None or name1 is None or intrinsics0 is None or intrinsics1 is None:
            raise InputError(f"scene info has a pair of photos without name: {first}, {second}")
        if pose0 is None or pose1 is None:
            raise InputError(f"scene info has a pair of photos without pose: {name0}, {name1}")
        return PosedPair(name0, name1, intrinsics0, intrinsics1, pose1 @ np.linalg.inv(pose0))


def read_posed_pairs(path: Path, image_dir: Path) -> list[PosedPair]:
    """Read a list of pairs in any of the layouts named above.

    Args:
        path: a text file, an `.npz` file, or a folder of `scene_info` files.
        image_dir: folder of the photos; looked into for ScanNet only, whose intrinsics are those of
            photos of 640 x 480.

    Raises:
        InputError: no such file, no pairs in it, or not as expected.
    """
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        pairs = [pair for file in files for pair in read_posed_pairs(file, image_dir)]
    elif not path.is_file():
        raise InputError(f"no file {path}: give a list of pairs with their true poses")
    elif path.suffix != ".npz":
        pairs = _read_text(path)
    else:
        entries = _load_arrays(path)
        if "rel_pose" in entries:
            pairs = _scannet_pairs(path, entries, image_dir)
        else:
            scene = _scene_info(path, entries)
            pairs = [scene.posed_pair(first, second) for first, second in scene.pairs.tolist()]
    if not pairs:
        raise InputError(f"no pairs in {path}")
    return pairs


def read_scene_info(path: Path) -> SceneInfo:
    """Read one of LoFTR's `scene_info` files of MegaDepth.

    Raises:
        InputError: it is not such a file.
    """
    return _scene_info(path, _load_arrays(path))


def read_hpatches(folder: Path) -> list[HomographyPair]:
    """Read the pairs (1, k) of all sequences, without `LARGE_SEQUENCES`.

    Raises:
        InputError: no sequences, or a homography that is missing or cannot be read.
    """
    pairs = []
    for sequence in sorted(path for path in folder.glob("[iv]_*") if path.is_dir()):
        if sequence.name in LARGE_SEQUENCES:
            continue
        for k in range(2, 7):
            path = sequence / f"H_1_{k}"
            try:
                homography = np.loadtxt(path, dtype=np.float64).reshape(3, 3)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{path} cannot be read as a 3 x 3 matrix: {one_line(error)}"
                ) from error
            names = (f"{sequence.name}/1.ppm", f"{sequence.name}/{k}.ppm")
            pairs.append(HomographyPair(*names, homography))
    if not pairs:
        raise InputError(f"no sequences v_* or i_* in {folder}: give the folder of HPatches")
    return pairs


def _read_text(path: Path) -> list[PosedPair]:
    """Read lines `image0 image1 rot0 rot1 K0 K1 T_0to1`, matrices row by row: 38 fields.

    Intrinsics and pose are those of the photos as stored; rot0 and rot1 count the counter-clockwise
    quarter turns that set them upright for matching.
    """
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        for name in fields[:2]:
            check_name(name, f"{path}, line {number}")
        if len(fields) != 38:
            raise InputError(f"{path}, line {number}: {len(fields)} fields, expected 38")
        try:
            values = np.array(fields[2:], dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: a number cannot be read") from error
        turns = values[:2].astype(int)
        if (turns != values[:2]).any():
            raise InputError(f"{path}, line {number}: rot0 and rot1 count quarter turns")
        intrinsics0, intrinsics1 = values[2:11].reshape(3, 3), values[11:20].reshape(3, 3)
        pose = values[20:].reshape(4, 4)
        quarter_turns = (int(turns[0]), int(turns[1]))
        pairs.append(PosedPair(fields[0], fields[1], intrinsics0, intrinsics1, pose, quarter_turns))
    return pairs


def _scene_info(path: Path, entries: Mapping[str, Any]) -> SceneInfo:
    try:
        pair_infos = list(entries["pair_infos"])
        matrices = [
            [None if matrix is None else np.asarray(matrix, np.float64) for matrix in entries[key]]
            for key in ("intrinsics", "poses")
        ]
        return SceneInfo(
            [None if name is None else str(name) for name in entries["image_paths"]],
            [None if name is None else str(name) for name in entries["depth_paths"]],
            [None if matrix is None else matrix.reshape(3, 3) for matrix in matrices[0]],
            [None if matrix is None else matrix.reshape(4, 4) for matrix in matrices[1]],
            np.array([info[0] for info in pair_infos], dtype=np.int64).reshape(-1, 2),
            np.array([info[1] for info in pair_infos], dtype=np.float64),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a scene_info file: expected image_paths, depth_paths, intrinsics, "
            "poses and pair_infos"
        ) from error


def _scannet_pairs(path: Path, entries: Mapping[str, Any], image_dir: Path) -> list[PosedPair]:
    """Pairs of ScanNet: `name` (N, 4) scene, scan and two frames, `rel_pose` (N, 12)."""
    intrinsics_path = path.parent / "intrinsics.npz"
    if not intrinsics_path.is_file():
        raise InputError(f"no {intrinsics_path}: ScanNet's list needs it beside it")
    intrinsics = _load_arrays(intrinsics_path)
    pairs = []
    for name, pose in zip(entries["name"], entries["rel_pose"], strict=True):
        scene, scan, frame0, frame1 = (int(number) for number in name)
        folder = f"scene{scene:04d}_{scan:02d}"
        if folder not in intrinsics:
            raise InputError(f"{intrinsics_path} has nothing on {folder}")
        names = [f"{folder}/color/{frame}.jpg" for frame in (frame0, frame1)]
        matrices = []
        for photo in names:
            height, width = read_image(image_dir / photo).shape[:2]
            enlarged = np.diag([width / SCANNET_SIZE[0], height / SCANNET_SIZE[1], 1.0])
            matrices.append(enlarged @ np.asarray(intrinsics[folder], np.float64).reshape(3, 3))
        cam1_from_cam0 = np.eye(4)
        cam1_from_cam0[:3] = np.asarray(pose, np.float64).reshape(3, 4)
        pairs.append(PosedPair(names[0], names[1], matrices[0], matrices[1], cam1_from_cam0))
    return pairs


class _ArrayUnpickler(pickle.Unpickler):
    """Loads arrays and plain containers only: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in PICKLED_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is refused")


def _load_arrays(path: Path) -> dict[str, Any]:
    """Entries of an `.npz` file; LoFTR's own are pickled dicts of that name.

    Raises:
        InputError: it cannot be read, or contains other than arrays.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return dict(_ArrayUnpickler(file).load())
        with zipfile.ZipFile(path) as archive:
            return {
                Path(name).stem: _load_array(io.BytesIO(archive.read(name)))
                for name in archive.namelist()
            }
    except Exception as error:  # garbage can make a reader fail in any way
        raise InputError(f"{path} cannot be read as arrays: {one_line(error)}") from error


def _load_array(file: io.BytesIO) -> NDArray[Any]:
    """One `.npy` file; numpy unpickles arrays of objects only without a check of what is in."""
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        return np.asarray(_ArrayUnpickler(file).load(), dtype=object).reshape(shape)
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
