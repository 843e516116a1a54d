"""SIFT by OpenCV in the form of COLMAP's, for training on machines without COLMAP."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from sfm_matchers.features.networks import to_gray
from sfm_matchers.networks.mambaglue import LocalFeatures

# COLMAP's detector in OpenCV's terms: three scales per octave, contrast 0.02 / 3 for each.
SCALES_PER_OCTAVE = 3
CONTRAST = 0.02
EDGE_RATIO = 10
SIZE_PER_SCALE = 2.0  # OpenCV's keypoint size is a diameter, COLMAP's scale a radius
MAX_DESCRIPTOR_ENTRY = 255 / 512  # COLMAP stores bytes


def extract_sift(images: Tensor, max_keypoints: int) -> LocalFeatures:
    """Extract SIFT features that look like those of `features.SiftExtractor`.

    Measured against COLMAP's on a photograph of 480 x 360: nine in ten keypoints have a partner
    within 0.5 px and at the same scale, and where their orientations agree too, the descriptors
    of partners have a median cosine of 0.997.

    Args:
        images: (B, 3, H, W) RGB in 0..1, on any device.
        max_keypoints: an image keeps its largest ones.

    Returns:
        Features on the device of the images, those of an image from the largest scale to the
        smallest, which is the order of their scores. M is at least 1.
    """
    gray = to_gray(images)[:, 0]
    pixels = (gray * 255).round().clamp(0, 255).byte().cpu().numpy()
    tables = [_extract_one(one, max_keypoints) for one in pixels]
    most = max(1, *(len(table) for table in tables))
    padded = np.stack([np.pad(table, ((0, most - len(table)), (0, 0))) for table in tables])
    features = torch.from_numpy(padded).to(images.device)
    size = features.new_tensor([images.shape[3], images.shape[2]])
    return LocalFeatures(
        keypoints=features[..., :2],
        descriptors=features[..., 4:],
        image_size=size.expand(len(images), 2),
        scales=features[..., 2],
        oris=features[..., 3],
        scores=features[..., 2],
        num_keypoints=torch.tensor([len(table) for table in tables], device=images.device),
    )


def _extract_one(gray: np.ndarray, max_keypoints: int) -> np.ndarray:
    """Rows of x, y, scale, orientation and RootSIFT descriptor: (N, 132) float32."""
    # Each call has its own detector: the workers of the training loop run at the same time.
    detector = cv2.SIFT.create(
        nOctaveLayers=SCALES_PER_OCTAVE,
        contrastThreshold=CONTRAST,
        edgeThreshold=EDGE_RATIO,
        enable_precise_upscale=True,
    )
    keypoints, descriptors = detector.detectAndCompute(gray, None)
    if not keypoints:
        return np.zeros((0, 132), np.float32)
    geometry = np.array([(*k.pt, k.size, k.angle) for k in keypoints], np.float32)
    chosen = np.argsort(-geometry[:, 2], kind="stable")[:max_keypoints]
    geometry, descriptors = geometry[chosen], np.asarray(descriptors)[chosen]
    geometry[:, 2] /= SIZE_PER_SCALE
    geometry[:, 3] = (np.deg2rad(geometry[:, 3]) + np.pi) % (2 * np.pi) - np.pi
    root = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
    return np.hstack([geometry, root.clip(max=MAX_DESCRIPTOR_ENTRY)]).astype(np.float32)
