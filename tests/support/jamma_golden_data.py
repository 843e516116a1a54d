"""JamMa's golden data."""

from __future__ import annotations

import functools

import numpy as np
import torch
from golden_weights_jamma import golden_normal, golden_state_dict
from material import shared_path
from torch import Tensor

from sfm_matchers.networks import jamma
from sfm_matchers.networks.jamma import JamMa, JamMaConfig

GOLDEN = "networks/jamma/golden"
TOLERANCE = 1e-4  # of features and similarities
POINT_TOLERANCE = 1e-3  # pixels
CASES = {
    "a": ("case_a_nomask_160x224", (160, 224), 16),
    "b": ("case_b_padded_192x192", (192, 192), 16),
    "c": ("case_c_batch2_128x160", (128, 160), 32),
    "d": ("case_d_batch2_padded_128x128", (128, 128), 0),
}


@functools.cache
def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_path(f"{GOLDEN}/{name}.npz")) as arrays:
        return dict(arrays)


@functools.cache
def golden_network() -> JamMa:
    network = JamMa().eval()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(golden_state_dict(shapes), strict=True)
    return network


def network_with(config: JamMaConfig) -> JamMa:
    network = JamMa(config).eval()
    network.load_state_dict(golden_network().state_dict())
    return network


def normalized(pixels: np.ndarray) -> Tensor:
    mean, std = np.float32(jamma.IMAGE_MEAN), np.float32(jamma.IMAGE_STD)
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return torch.from_numpy(values).permute(2, 0, 1)


def inputs(case: str) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Images padded to the canvas, and masks and scales where the case has them."""
    name, canvas, _ = CASES[case]
    data = load(name)
    images = []
    for side in ("image0", "image1"):
        if side in data:
            images.append(torch.stack([normalized(pixels) for pixels in data[side]]))
            continue
        items = sorted(key for key in data if key.startswith(f"{side}_"))
        padded = torch.zeros(len(items), 3, *canvas)
        for target, key in zip(padded, items, strict=True):
            image = normalized(data[key])
            target[:, : image.shape[1], : image.shape[2]] = image
        images.append(padded)
    options = {
        key: torch.from_numpy(data[key])
        for key in ("mask0", "mask1", "scale0", "scale1")
        if key in data
    }
    return (images[0], images[1]), options


def assert_close(actual: Tensor, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=tolerance)


def unit_input(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(golden_normal(f"unit.{name}", shape).astype(np.float32))
