"""The truth between two images with depth maps, as the detector-free networks were trained with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfm_matchers.training.data.pair_batch import lookup, without_autocast

PROJECTION_EPSILON = 1e-4  # added to the depth that a projection divides by


@dataclass(frozen=True)
class DepthGeometry:
    """The truth between two images with depth maps; a `PairGeometry`.

    Attributes:
        depth0: (B, H0, W0) z in the units of the poses, 0 where unknown.
        depth1: (B, H1, W1).
        intrinsics0: (B, 3, 3).
        intrinsics1: (B, 3, 3).
        cam1_from_cam0: (B, 4, 4).
        max_relative_depth_error: a point counts as hidden if the depth map of the other image says
            another depth than the point has there.
    """

    depth0: Tensor
    depth1: Tensor
    intrinsics0: Tensor
    intrinsics1: Tensor
    cam1_from_cam0: Tensor
    max_relative_depth_error: float = 0.2

    @without_autocast
    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        """See `PairGeometry.warp`; positions are returned for hidden points too."""
        depths = (self.depth0, self.depth1)
        intrinsics = (self.intrinsics0, self.intrinsics1)
        pose = self.cam1_from_cam0 if source == 0 else torch.linalg.inv(self.cam1_from_cam0)
        target = 1 - source

        depth = lookup(depths[source], points, outside=0)
        homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
        in_source = (homogeneous * depth[..., None]) @ torch.linalg.inv(intrinsics[source]).mT
        in_target = in_source @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
        projected = in_target @ intrinsics[target].mT
        warped = projected[..., :2] / (projected[..., 2:] + PROJECTION_EPSILON)

        height, width = depths[target].shape[1:]
        corner = torch.tensor([width - 1, height - 1], device=points.device)
        inside = ((warped > 0) & (warped < corner)).all(dim=-1)
        seen = lookup(depths[target], warped.trunc(), outside=0)
        agrees = (in_target[..., 2] - seen).abs() < self.max_relative_depth_error * seen
        return warped, (depth > 0) & inside & agrees
