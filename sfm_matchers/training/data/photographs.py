"""Photographs kept in memory (or on the device) as the raw material of training pairs."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.errors import InputError
from sfm_matchers.photos.folders import IMAGE_EXTENSIONS

if TYPE_CHECKING:
    from sfm_matchers.training.data.megadepth import PosedPhotographs
    from sfm_matchers.training.data.teacher_pairs import TeacherPairs

logger = logging.getLogger(__name__)

PYRAMID_LEVELS = 3


@dataclass
class Photographs:
    """Photographs as image pyramids of uint8 tensors on one device.

    Attributes:
        names: POSIX paths relative to the folder they were read from.
        pyramids: for each photograph `PYRAMID_LEVELS` tensors of shape (3, H / 2^l, W / 2^l), RGB.
        posed: photographs with depth and poses, a further source of pairs; or None.
        taught: photographs that a teacher has matched, a further source of pairs; or None.
    """

    names: list[str]
    pyramids: list[list[Tensor]]
    posed: PosedPhotographs | None = None
    taught: TeacherPairs | None = None

    def __len__(self) -> int:
        return len(self.names)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a photograph at its finest level."""
        height, width = self.pyramids[index][0].shape[-2:]
        return int(height), int(width)

    def sample(self, index: int, points: Tensor, spacing: float | None = None) -> Tensor:
        """Look up colours, from the pyramid level that fits the spacing of the points.

        Args:
            index: which photograph.
            points: (H, W, 2) positions in pixels of the finest level, (0, 0) = the centre of the
                top-left pixel.
            spacing: distance between neighbouring points in pixels; measured at the middle of
                the grid if None.

        Returns:
            (3, H, W) float colours in 0..1; border colours are repeated outside.
        """
        height, width = self.size(index)
        if spacing is None:
            spacing = _pixel_spacing(points)
        level = min(max(round(math.log2(max(spacing, 1e-6))), 0), PYRAMID_LEVELS - 1)
        texture = self.pyramids[index][level].float()[None] / 255.0
        extent = points.new_tensor([width, height])
        grid = (points + 0.5) * 2.0 / extent - 1.0
        return F.grid_sample(
            texture, grid[None], mode="bilinear", padding_mode="border", align_corners=False
        )[0]


def _pixel_spacing(points: Tensor) -> float:
    """Distance between neighbouring points at the middle of an (H, W, 2) grid."""
    row, column = points.shape[0] // 2, points.shape[1] // 2
    along_x = points[row, column] - points[row, column - 1]
    along_y = points[row, column] - points[row - 1, column]
    area = (along_x[0] * along_y[1] - along_x[1] * along_y[0]).abs()
    return math.sqrt(float(area))


def list_photographs(photo_dir: Path) -> list[str]:
    """List photographs below a folder, sorted, as POSIX paths relative to it.

    Raises:
        InputError: if the folder does not exist or holds no photograph.
    """
    if not photo_dir.is_dir():
        raise InputError(f"{photo_dir} is not a folder: give the folder of training photographs")
    names = sorted(
        path.relative_to(photo_dir).as_posix()
        for path in photo_dir.rglob("*")
        if path.suffix.lower() in IMAGE_EXTENSIONS
    )
    if not names:
        raise InputError(f"no photographs in {photo_dir}: expected files like {{*.jpg, *.png}}")
    return names


def load_photographs(
    photo_dir: Path,
    names: list[str],
    *,
    max_side: int = 640,
    min_side: int = 160,
    device: torch.device | str = "cpu",
) -> Photographs:
    """Read photographs once, shrunk so that the longer side is at most `max_side` pixels.

    Files that cannot be decoded or whose shorter side is below `min_side` are left out with a
    warning.

    Raises:
        InputError: if nothing usable remains.
    """
    kept: list[str] = []
    pyramids: list[list[Tensor]] = []
    for name in names:
        image = cv2.imread(str(photo_dir / name), cv2.IMREAD_COLOR)
        if image is None or min(image.shape[:2]) < min_side:
            logger.warning("photograph %s left out: unreadable or under %d px", name, min_side)
            continue
        scale = min(1.0, max_side / max(image.shape[:2]))
        height, width = (round(side * scale) for side in image.shape[:2])
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        kept.append(name)
        pyramids.append([_level(image, height, width, level, device) for level in range(3)])
    if not kept:
        raise InputError(f"no usable photograph in {photo_dir}")
    return Photographs(kept, pyramids)


def _level(
    image: np.ndarray, height: int, width: int, level: int, device: torch.device | str
) -> Tensor:
    size = (max(1, width >> level), max(1, height >> level))
    if size != (image.shape[1], image.shape[0]):
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
