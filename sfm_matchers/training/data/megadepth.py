"""Pairs of real photos with depth maps and poses, in the layout of MegaDepth that LoFTR trains on.

    FOLDER/Undistorted_SfM/0015/images/*.jpg                         photos, undistorted by D2-Net
    FOLDER/phoenix/S6/zl548/MegaDepth_v1/0015/dense0/depths/*.h5     depth maps, dataset `depth`
    SCENE_INFO/*.npz                                                 LoFTR's indices: the pairs

Paths in the indices are relative to FOLDER. A depth map has the size of its photo; 0 is unknown.
Intrinsics are taken in pixels with (0, 0) the centre of the top-left one, as LoFTR does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.pair_lists import SceneInfo, read_scene_info
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.photos.images import read_image
from sfm_matchers.training.data.depth_geometry import DepthGeometry
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.pair_batch import PairBatch, lookup

# LoFTR's recipe has 0.2, which takes much of what is hidden for visible.
MAX_RELATIVE_DEPTH_ERROR = 0.05
# Pairs are drawn uniformly over bins of overlap: most pairs of a scene are either easy or hopeless.
OVERLAP_BINS = np.linspace(0.1, 0.7, 7)
MEMORY_LIMIT = 4 * 1024**3  # bytes of decoded photos and depth maps; then the oldest go


@dataclass
class ResizedDepthGeometry:
    """The truth between two resized photos; a `PairGeometry`.

    Attributes:
        photos: the truth between the photos as stored.
        scale0: (B, 2) width and height of photo 0 over those of image 0.
        scale1: (B, 2).
    """

    photos: DepthGeometry
    scale0: Tensor
    scale1: Tensor

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`; infinite where the depth of the source is unknown."""
        here, there = (self.scale0, self.scale1) if source == 0 else (self.scale1, self.scale0)
        in_photo = (points + 0.5) * here[:, None] - 0.5
        warped, visible = self.photos.warp(in_photo, source)
        depth = (self.photos.depth0, self.photos.depth1)[source]
        known = lookup(depth, in_photo, outside=0)[..., None] > 0
        warped = torch.where(known, (warped + 0.5) / there[:, None] - 0.5, torch.inf)
        return warped, visible


@dataclass
class PosedPhotographs:
    """Scenes of photos with depth, from which training pairs are drawn; read when first needed.

    Attributes:
        folder: what the paths in the scenes are relative to.
        scenes: the indices; each scene is as likely as any other.
    """

    folder: Path
    scenes: list[SceneInfo]
    _decoded: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sample_pairs(
        self,
        batch_size: int,
        image_size: tuple[int, int],
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> PairBatch:
        """Draw pairs; photos are reduced to fit, and put into the top-left corner of black images.

        Args:
            batch_size: number of pairs B.
            image_size: (H, W) of all images.
            generator: CPU generator from which everything is drawn.
            device: where the tensors are put.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        drawn = [self.draw_pair(generator) for _ in range(batch_size)]
        sides = [
            [self._fitted(scene, pair[side], image_size) for scene, pair in drawn]
            for side in (0, 1)
        ]
        images, scales, depths = ([_stack(side, k) for side in sides] for k in range(3))
        geometry = self.geometry(drawn, (depths[0], depths[1]), (scales[0], scales[1]), device)
        return PairBatch(images[0].to(device), images[1].to(device), geometry)

    def geometry(
        self,
        drawn: Sequence[tuple[SceneInfo, tuple[int, int]]],
        depths: tuple[Tensor, Tensor],
        scales: tuple[Tensor, Tensor],
        device: torch.device | str,
    ) -> ResizedDepthGeometry:
        """The truth between B pairs of photos of one scene each.

        Args:
            drawn: scenes, and indices of their photos.
            depths: of both photos, (B, H, W), padded with zeros.
            scales: sides of the photos over those of the images, (B, 2) for either.
            device: where the tensors are put.
        """
        pairs = [scene.posed_pair(*pair) for scene, pair in drawn]
        photos = DepthGeometry(
            depths[0].to(device),
            depths[1].to(device),
            _float_stack([pair.intrinsics0 for pair in pairs]).to(device),
            _float_stack([pair.intrinsics1 for pair in pairs]).to(device),
            _float_stack([pair.cam1_from_cam0 for pair in pairs]).to(device),
            MAX_RELATIVE_DEPTH_ERROR,
        )
        return ResizedDepthGeometry(photos, scales[0].to(device), scales[1].to(device))

    def draw_pair(self, generator: torch.Generator) -> tuple[SceneInfo, tuple[int, int]]:
        """Draw a scene and two of its photos: a bin of overlap, and a pair in it."""
        scene = self.scenes[int(torch.randint(len(self.scenes), (), generator=generator))]
        bins = np.digitize(scene.overlaps, OVERLAP_BINS)
        filled = [k for k in range(1, len(OVERLAP_BINS)) if (bins == k).any()]
        candidates = scene.pairs
        if filled:
            chosen = filled[int(torch.randint(len(filled), (), generator=generator))]
            candidates = scene.pairs[bins == chosen]
        pair = candidates[int(torch.randint(len(candidates), (), generator=generator))].tolist()
        if torch.rand((), generator=generator) < 0.5:
            pair = pair[::-1]
        return scene, (pair[0], pair[1])

    def read(self, scene: SceneInfo, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A photo (H, W, 3) uint8 and its depth map (H, W) float32; decoded once.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        name, depth_name = scene.image_paths[index], scene.depth_paths[index]
        if name is None or depth_name is None:
            raise InputError(f"photo {index} of a scene with {len(scene.pairs)} pairs has no path")
        with self._lock:
            if name in self._decoded:
                self._decoded.move_to_end(name)
                return self._decoded[name]
        photo, depth = read_image(self.folder / name), _read_depth(self.folder / depth_name)
        if depth.shape != photo.shape[:2]:
            raise InputError(f"{depth_name} has the shape {depth.shape}, its photo {photo.shape}")
        with self._lock:
            self._decoded[name] = photo, depth
            total = sum(photo.nbytes + depth.nbytes for photo, depth in self._decoded.values())
            while total > MEMORY_LIMIT and len(self._decoded) > 1:
                oldest = self._decoded.popitem(last=False)[1]
                total -= oldest[0].nbytes + oldest[1].nbytes
        return photo, depth

    def _fitted(
        self, scene: SceneInfo, index: int, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image (3, H, W) in 0..1, scale (2,) back to the photo, depth map of the photo."""
        photo, depth = self.read(scene, index)
        height, width = photo.shape[:2]
        factor = min(1.0, image_size[0] / height, image_size[1] / width)
        rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
        resized = np.asarray(cv2.resize(photo, (columns, rows), interpolation=cv2.INTER_AREA))
        image = torch.zeros(3, *image_size)
        image[:, :rows, :columns] = torch.from_numpy(resized).permute(2, 0, 1) / 255
        return image, torch.tensor([width / columns, height / rows]), torch.from_numpy(depth)


def load_megadepth(
    folder: Path, scene_info: Path, hold_out: Sequence[str] = ()
) -> tuple[PosedPhotographs, PosedPhotographs]:
    """Read the indices of all scenes: those to train on, and those held out.

    One scene in ten is held out, by a hash of the name of its index up to the first "_", because
    LoFTR's indices split a scene by overlap. With one scene only, it is used for both.

    Args:
        folder: holds the photos and the depth maps.
        scene_info: folder of the indices.
        hold_out: names of further scenes to hold out.

    Raises:
        InputError: there are no indices, one cannot be read, or a scene to hold out is none.
    """
    files = sorted(scene_info.glob("*.npz"))
    scenes = {file: read_scene_info(file) for file in files}
    scenes = {file: scene for file, scene in scenes.items() if len(scene.pairs)}
    if not scenes:
        raise InputError(f"no scene_info files with pairs (*.npz) in {scene_info}")
    names = {file: file.stem.split("_")[0] for file in scenes}
    if unknown := set(hold_out) - set(names.values()):
        raise InputError(f"no scene {min(unknown)!r} to hold out in {scene_info}")
    chosen = {name for name in names.values() if is_held_out(name)} or {min(names.values())}
    chosen |= set(hold_out)
    held_out = [file for file in scenes if names[file] in chosen]
    kept = [file for file in scenes if names[file] not in chosen] or held_out
    return (
        PosedPhotographs(folder, [scenes[file] for file in kept]),
        PosedPhotographs(folder, [scenes[file] for file in held_out]),
    )


def _read_depth(path: Path) -> np.ndarray:
    """Depth map (H, W) float32, 0 where unknown; MegaDepth marks some such pixels below 0."""
    with open_h5(path) as file:
        stored = file.numbers("", "depth")
    if stored is None:
        raise InputError(f"{path} cannot be read as a depth map: it holds no dataset depth")
    depth = stored.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0)


def _stack(samples: list[tuple[Tensor, Tensor, Tensor]], part: int) -> Tensor:
    """One part of all samples, padded with zeros to a common size: (B, ...)."""
    values = [sample[part] for sample in samples]
    stacked = values[0].new_zeros(
        len(values), *(max(v.shape[i] for v in values) for i in range(values[0].ndim))
    )
    for row, value in zip(stacked, values, strict=True):
        row[tuple(slice(side) for side in value.shape)] = value
    return stacked


def _float_stack(matrices: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(matrices)).float()
