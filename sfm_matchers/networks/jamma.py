"""JamMa: local feature matching with joint Mamba (Lu and Du, CVPR 2025).

The modules follow the paper: local feature extraction (ConvNeXt V2), joint Mamba with the JEGO scan
and the multi-scale aggregation, coarse-to-fine matching, sub-pixel refinement. Where the released
code and the paper disagree, the code is followed, because the released weights depend on it; each
such place says so. Parameter names are those of the released checkpoint.

Coordinates in this file are the authors': (x, y) in input pixels as indices, (0, 0) being the
top-left pixel. The coarse cell in row r and column c of the 1/8 map stands for the pixel (8c, 8r)
and its fine window, 5 x 5 cells of the 1/2 map, is centred there, not on the cell's middle.

The two images of a pair have one size, a multiple of 16 (two cells of the 1/8 map: the scan takes
every second row and column). Pad at the right and bottom with zeros after the normalisation, and
pass masks.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.networks.chosen_pixels import ALL_PIXELS, Pixels
from sfm_matchers.networks.coarse_matching import (
    CoarseMatches,
    MatchedCells,
    match_either_maximum,
)
from sfm_matchers.networks.mamba import MambaBlock, run_side_by_side
from sfm_matchers.networks.precision import (
    check_positive,
    check_precision,
    in_its_precision,
)
from sfm_matchers.networks.similarity import similarity

CELL = 8  # side of a coarse cell in input pixels
FINE_CELL = 2  # side of a fine cell in input pixels
SIZE_MULTIPLE = 2 * CELL
ENCODER_DIMS = (80, 160)  # at 1/4 and 1/8
QUARTER_DIM = 128
COARSE_DIM = 256
FINE_DIM = 64
WINDOW = 5  # side of a fine window in fine cells
WINDOW_CELLS = WINDOW * WINDOW
DIRECTIONS = 4  # of the scan, one Mamba block each
MIXER_LAYERS = 4
WINDOW_CHUNK = 256  # matches refined at once on a CPU: as many as its cache holds
WINDOW_CHUNK_GPU = 4096  # bounds the memory of windows and their scores
HIDDEN_AT_ONCE = 1 << 18  # entries between the layers of the encoder's perceptrons, on a CPU
IMAGE_MEAN = (0.485, 0.456, 0.406)  # of the RGB input in 0..1, ImageNet's
IMAGE_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor) -> Tensor:
    """RGB (..., 3, H, W) in 0..1 to ImageNet's zero mean and unit variance."""
    mean = images.new_tensor(IMAGE_MEAN).view(3, 1, 1)
    return (images - mean) / images.new_tensor(IMAGE_STD).view(3, 1, 1)


@dataclass(frozen=True)
class JamMaConfig:
    """What may differ between two uses of the same weights."""

    coarse_threshold: float = 0.2
    """A coarse match needs more than this probability along its row or its column."""
    fine_threshold: float = 0.1
    """A match needs more than this probability in its fine window; otherwise it is dropped."""
    border: int = 2
    """Cells (8 px) along the border of an image, or of its valid part, that are never matched."""
    coarse_temperature: float = 0.1
    fine_temperature: float = 0.1
    pad_to_square: bool = False
    """Images are padded to squares before the encoder sees them, not its features after it; the
    official weights are trained so. Done by what prepares the images: `JamMa` takes any size."""
    precision: str = "float32"
    """Of matrix products and convolutions; "float16" is for GPUs."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_positive(
            coarse_temperature=self.coarse_temperature,
            fine_temperature=self.fine_temperature,
        )
        if self.border < 0:
            raise InputError(f"border is {self.border}, it must be 0 or more")


class JamMaFeatures(NamedTuple):
    """What the encoder says about a batch of images; depends on each image alone."""

    fine: Tensor  # (B, 128, H/4, W/4), see `PairMatcher.image_share`
    eighth: Tensor  # (B, 256, H/8, W/8)


class FinePredictions(NamedTuple):
    """The fine stage's view of M pairs of windows, 25 cells each, row-major."""

    similarity: Tensor  # (M, 25, 25) logits
    tokens: Tensor  # (M, 50, 64), the cells of image 0, then of image 1; for `subpixel_offsets`


@dataclass(frozen=True)
class JamMaOutput:
    """N matches of a batch of image pairs, sorted by batch id, then by coarse cells.

    Attributes:
        batch_ids: (N,) int64, the pair a match belongs to.
        keypoints0: (N, 2) x and y in image 0: input pixels, times `scale0` if given.
        keypoints1: (N, 2) x and y in image 1.
        scores: (N,) probability of the pair of fine cells, in (fine threshold, 1].
        coarse: all M >= N coarse matches, before the fine threshold.
        coarse_ids: (N,) int64, the coarse match each match was refined from.
    """

    batch_ids: Tensor
    keypoints0: Tensor
    keypoints1: Tensor
    scores: Tensor
    coarse: CoarseMatches
    coarse_ids: Tensor


# Local feature extraction -------------------------------------------------------------------------


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2 (Woo et al., CVPR 2023), algorithm 1: `x * factor(sum of x^2) + beta`.

    The norm runs over the whole canvas: padding an image changes the features of its valid part.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def factor(self, sum_of_squares: Tensor) -> Tensor:
        """Map the squares of x summed over an image's pixels (B, 1, 1, C) to the same shape."""
        energy = sum_of_squares.clamp_min(1e-30).sqrt()  # the clamp is for gradients
        response = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * response + 1


class ConvNeXtBlock(nn.Module):
    """Depthwise 7 x 7, then a two-layer perceptron with global response normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GlobalResponseNorm(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + self._perceptron(y).permute(0, 3, 1, 2)

    def _perceptron(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape; the norm becomes a part of the second layer."""
        rows = x.shape[1]
        if x.device.type == "cpu":
            rows = max(1, HIDDEN_AT_ONCE // max(1, 4 * x[:, 0].numel()))
        hidden = [F.gelu(self.pwconv1(part)) for part in x.split(rows, 1)]
        squares = [part.float().square().sum((1, 2), keepdim=True) for part in hidden]
        factor = self.grn.factor(torch.stack(squares).sum(0))
        weight = (self.pwconv2.weight * factor[:, 0]).transpose(1, 2)
        bias = F.linear(self.grn.beta, self.pwconv2.weight, self.pwconv2.bias)
        parts = [torch.baddbmm(bias[0], part.flatten(1, 2), weight) for part in hidden]
        return torch.cat(parts, dim=1).view_as(x)


class ConvNeXt(nn.Module):
    """The first two stages of ConvNeXt V2 nano, without the norm that follows them there."""

    def __init__(self) -> None:
        super().__init__()
        quarter, eighth = ENCODER_DIMS
        self.downsample_layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, quarter, 4, stride=4), ChannelLayerNorm(quarter, 1e-6)),
                nn.Sequential(
                    ChannelLayerNorm(quarter, 1e-6), nn.Conv2d(quarter, eighth, 2, stride=2)
                ),
            ]
        )
        self.stages = nn.ModuleList(
            nn.Sequential(ConvNeXtBlock(channels), ConvNeXtBlock(channels))
            for channels in ENCODER_DIMS
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, 80, H/4, W/4) and (B, 160, H/8, W/8)."""
        quarter = self.stages[0](self.downsample_layers[0](image))
        return quarter, self.stages[1](self.downsample_layers[1](quarter))


class Encoder(nn.Module):
    """ConvNeXt and a linear map of each of its two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = ConvNeXt()
        self.lin_4 = nn.Conv2d(ENCODER_DIMS[0], QUARTER_DIM, 1)
        self.lin_8 = nn.Conv2d(ENCODER_DIMS[1], COARSE_DIM, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 3, H, W) to (B, 128, H/4, W/4) and (B, 256, H/8, W/8)."""
        # Channels last: the perceptrons and norms of the encoder then need no transposition.
        quarter, eighth = self.cnn(image.contiguous(memory_format=torch.channels_last))
        return self.lin_4(quarter), self.lin_8(eighth)


class PositionNorm(nn.Module):
    """Layer normalisation over the channels of (B, C, L); the checkpoint nests it under `ln`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(x.transpose(1, 2)).transpose(1, 2)


class PositionEncoder(nn.Module):
    """A perceptron from a cell's position to a code that is added to its feature.

    The paper does not mention it.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (2, 32, 64, 128, COARSE_DIM)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv1d(inputs, outputs, 1), PositionNorm(outputs), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv1d(COARSE_DIM, COARSE_DIM, 1))

    def forward(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Return (1, 256, h, w) for a grid of h x w cells, with the dtype and device of `like`."""
        positions = normalized_positions(grid).to(like)
        return self.encoder(positions.T[None]).unflatten(2, grid)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for training too
def normalized_positions(grid: tuple[int, int]) -> Tensor:
    """Top-left pixels (x, y) of all cells, scaled by half the longer side: (h * w, 2) float32.

    x is centred by half the image's height and y by half its width: exchanged in the released
    code, invisible on the square images it was trained on, and kept.
    """
    height, width = grid[0] * CELL, grid[1] * CELL
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    pixels = torch.stack((x, y), -1).reshape(-1, 2).float() * CELL
    return (pixels - torch.tensor([height, width]) / 2) / (max(height, width) / 2)


# Joint Mamba --------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept for training too
def scan_order(grid: tuple[int, int]) -> Tensor:
    """The JEGO scan: which cells each of the four sequences visits, in order.

    Cells of image 0 are 0 .. h * w - 1, row-major, those of image 1 follow. The two images lie side
    by side for the horizontal sequences (one row of image 0, the same row of image 1, ...) and one
    above the other for the vertical ones. By the parity of (row, column), a cell is in sequence 0
    (even, even: to the right), 1 (odd, odd: down), 2 (even, odd: to the left) or 3 (odd, even: up).
    The paper exchanges the cells of sequences 1 and 3.

    Args:
        grid: (h, w), both even.

    Returns:
        (4, h * w / 2) int64; every cell once.
    """
    cells = torch.arange(2 * grid[0] * grid[1]).view(2, *grid)
    beside = torch.cat((cells[0], cells[1]), dim=1)
    above = torch.cat((cells[0], cells[1]), dim=0).T
    return torch.stack(
        (
            beside[0::2, 0::2].flatten(),
            above[1::2, 1::2].flatten(),
            beside[0::2, 1::2].flatten().flip(0),
            above[0::2, 1::2].flatten().flip(0),
        )
    )


class GatedConvolution(nn.Module):
    """The aggregator: W2(GELU(W x) * V x) with 3 x 3 convolutions, each image apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.V = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.W2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return self.W2(F.gelu(self.W(x)) * self.V(x))


class JointMamba(nn.Module):
    """Both images through four Mamba blocks, one per scan direction, and the aggregator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MambaBlock(COARSE_DIM) for _ in range(DIRECTIONS))
        self.aggregator = GatedConvolution(COARSE_DIM)

    def forward(self, eighth0: Tensor, eighth1: Tensor) -> Tensor:
        """Map two (B, 256, h, w) to (2B, 256, h, w), images 0 first."""
        return self.aggregator(self.scan_and_merge(eighth0, eighth1))

    def scan_and_merge(self, eighth0: Tensor, eighth1: Tensor) -> Tensor:
        """Map two (B, 256, h, w) to (2B, 256, h, w), before the aggregator."""
        batch, channels, *grid = eighth0.shape
        order = scan_order((grid[0], grid[1])).to(eighth0.device)
        cells = torch.cat((_tokens(eighth0), _tokens(eighth1)), dim=1)
        sequences = cells[:, order].transpose(0, 1)
        blocks = [block for block in self.layers if isinstance(block, MambaBlock)]
        mixed = run_side_by_side(blocks, sequences).transpose(0, 1).flatten(1, 2)
        merged = mixed[:, order.flatten().argsort()].view(batch, 2, *grid, channels)
        return merged.transpose(0, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h * w, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


# Coarse-to-fine matching --------------------------------------------------------------------------


class CoarseMatching(nn.Module):
    """The projection in front of the coarse similarity; the paper compares unprojected features."""

    def __init__(self) -> None:
        super().__init__()
        self.final_proj = nn.Linear(COARSE_DIM, COARSE_DIM)

    def forward(self, coarse: Tensor) -> Tensor:
        """Map (B, 256, h, w) to (B, h * w, 256)."""
        return self.final_proj(_tokens(coarse))


class Upsampling(nn.Module):
    """Twice the resolution: bilinear and transposed convolution added, then refined."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.lin = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.transconv = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.cbr = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, wanted: Pixels = ALL_PIXELS) -> Tensor:
        """Map (B, C, h, w) to (B, C', 2h, 2w), of which the wanted pixels are computed."""
        sources = wanted.dilated().halved()
        low = sources.put(sources.convolve(x, self.lin.weight, self.lin.bias))
        both = F.interpolate(low, scale_factor=2.0, mode="bilinear") + self.transconv(x)
        convolution, norm, activation = self.cbr
        assert isinstance(convolution, nn.Conv2d)
        y = wanted.convolve(both, convolution.weight, convolution.bias)
        return wanted.put(activation(norm(y)))

    def reads(self, wanted: Pixels) -> Pixels:
        """The pixels of the input that the wanted ones depend on."""
        return wanted.dilated().halved().dilated()


class MixerLayer(nn.Module):
    """MLP-Mixer layer on pairs of windows: across the 50 cells, then across the 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        cells = 2 * WINDOW_CELLS
        self.mlp1 = nn.Sequential(nn.Linear(cells, cells), nn.GELU(), nn.Linear(cells, cells))
        self.mlp2 = nn.Sequential(
            nn.Linear(FINE_DIM, FINE_DIM),
            nn.LayerNorm(FINE_DIM),
            nn.GELU(),
            nn.Linear(FINE_DIM, FINE_DIM),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (M, 50, 64) to the same shape."""
        first, activation, last = self.mlp1
        x = x + _across_cells(last, activation(_across_cells(first, x)))
        return x + self.mlp2(x)


def _across_cells(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear layer on the middle axis of (M, 50, 64), without transposing that."""
    assert isinstance(linear, nn.Linear)
    return torch.baddbmm(linear.bias[:, None], linear.weight.expand(x.shape[0], -1, -1), x)


class FineMatching(nn.Module):
    """The similarity within windows and the sub-pixel offsets."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.fine_proj = nn.Linear(FINE_DIM, FINE_DIM, bias=False)
        self.subpixel_mlp = nn.Sequential(
            nn.Linear(2 * FINE_DIM, 2 * FINE_DIM, bias=False),
            nn.ReLU(),
            nn.Linear(2 * FINE_DIM, 4, bias=False),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (M, 50, 64) to logits (M, 25, 25) of cells of image 0 by cells of image 1."""
        cells0, cells1 = self.fine_proj(tokens).split(WINDOW_CELLS, dim=1)
        return cells0 @ cells1.transpose(1, 2) / (FINE_DIM * self.temperature)

    def offsets(self, tokens: Tensor, windows: Tensor, cells0: Tensor, cells1: Tensor) -> Tensor:
        """Offsets (N, 4), x0 y0 x1 y1 in fine cells within +-1/2, of cells (N,), 0..24, of chosen
        windows (N,)."""
        chosen = (tokens[windows, cells0], tokens[windows, WINDOW_CELLS + cells1])
        return 0.5 * self.subpixel_mlp(torch.cat(chosen, dim=-1)).tanh()


class PairMatcher(nn.Module):
    """Everything that sees both images."""

    def __init__(self, config: JamMaConfig) -> None:
        super().__init__()
        self.kenc = PositionEncoder()
        self.joint_mamba = JointMamba()
        self.coarse_matching = CoarseMatching()
        self.up2 = Upsampling(COARSE_DIM, QUARTER_DIM)
        self.conv7a = nn.Conv2d(2 * QUARTER_DIM, QUARTER_DIM, 3, padding=1)
        self.conv7b = nn.Conv2d(QUARTER_DIM, QUARTER_DIM, 3, padding=1)
        self.up3 = Upsampling(QUARTER_DIM, FINE_DIM)
        self.conv8a = nn.Conv2d(FINE_DIM, FINE_DIM, 3, padding=1)
        self.conv8b = nn.Conv2d(FINE_DIM, FINE_DIM, 3, padding=1)
        self.fine_enc = nn.Sequential(*(MixerLayer() for _ in range(MIXER_LAYERS)))
        self.fine_matching = FineMatching(config.fine_temperature)

    def image_share(self, quarter: Tensor) -> Tensor:
        """What the first convolution of the fine map makes of the encoder's 1/4 features.

        It sees them beside features of the pair; being linear, it is the sum of two, and this one
        is made once for all pairs of an image.
        """
        return F.conv2d(quarter, self.conv7a.weight[:, :QUARTER_DIM], self.conv7a.bias, padding=1)

    def fine_map(self, image_share: Tensor, coarse: Tensor, wanted: Pixels = ALL_PIXELS) -> Tensor:
        """Map (B, 128, H/4, W/4) and (B, 256, H/8, W/8) to (B, 64, H/2, W/2), of which the wanted
        pixels are computed."""
        at_8a = wanted.dilated()
        after_up3 = at_8a.dilated()
        at_7b = self.up3.reads(after_up3)
        at_7a = at_7b.dilated()
        x = self.up2(coarse, at_7a.dilated())
        x = at_7a.convolve(x, self.conv7a.weight[:, QUARTER_DIM:]) + at_7a.take(image_share)
        x = _gelu_convolution(x, at_7a, self.conv7b, at_7b)
        x = self.up3(at_7b.put(_gelu_channels_last(x)), after_up3)
        x = at_8a.convolve(x, self.conv8a.weight, self.conv8a.bias)
        return wanted.put(_gelu_convolution(x, at_8a, self.conv8b, wanted))


def _gelu_convolution(x: Tensor, at: Pixels, convolution: nn.Conv2d, wanted: Pixels) -> Tensor:
    return wanted.convolve(at.put(_gelu_channels_last(x)), convolution.weight, convolution.bias)


def _gelu_channels_last(x: Tensor) -> Tensor:
    """GELU of (B, C, H, W); torch's fast one for CPUs takes contiguous tensors only."""
    return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def window_pixels(coarse: Tensor, batch_ids: Tensor, cell_ids: Tensor) -> Pixels:
    """The pixels of fine maps that lie in the windows of chosen cells of (B, C, h, w)."""
    batch, _, height, width = coarse.shape
    stride = CELL // FINE_CELL
    shape = (batch, stride * height, stride * width)
    middles = torch.zeros(shape, dtype=torch.bool, device=coarse.device)
    middles[batch_ids, cell_ids // width * stride, cell_ids % width * stride] = True
    pixels = Pixels(middles)
    for _ in range(WINDOW // 2):
        pixels = pixels.dilated()
    return pixels


def fine_windows(fine_map: Tensor, batch_ids: Tensor, cell_ids: Tensor) -> Tensor:
    """Cut the windows of chosen coarse cells out of the fine map, zeros beyond its border.

    Args:
        fine_map: (B, 64, 4h, 4w).
        batch_ids: (M,) int64.
        cell_ids: (M,) int64, row-major cells of the h x w grid.

    Returns:
        (M, 25, 64), row-major within the window; its middle is the fine cell (4r, 4c).
    """
    _, channels, height, width = fine_map.shape
    stride = CELL // FINE_CELL
    steps = torch.arange(WINDOW, device=fine_map.device) - WINDOW // 2
    rows = (cell_ids // (width // stride) * stride)[:, None, None] + steps[:, None]
    columns = (cell_ids % (width // stride) * stride)[:, None, None] + steps
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    flat = (flat + batch_ids[:, None, None] * (height * width)).flatten()
    windows = fine_map.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, flat)
    return (windows * inside.flatten()[:, None]).view(-1, WINDOW_CELLS, channels)


def window_position(cells: Tensor) -> Tensor:
    """(x, y) of window cells (M,), in fine cells from the window's middle: (M, 2) float32."""
    return torch.stack((cells % WINDOW, cells // WINDOW), -1).float() - WINDOW // 2


def cell_position(cell_ids: Tensor, columns: int) -> Tensor:
    """(x, y) in input pixels of row-major coarse cells (M,): (M, 2) float32."""
    return torch.stack((cell_ids % columns, cell_ids // columns), -1).float() * CELL


def fine_position(cell_ids: Tensor, window_cells: Tensor, columns: int) -> Tensor:
    """(x, y) in input pixels of cells (M,) in the windows of coarse cells (M,): (M, 2)."""
    return cell_position(cell_ids, columns) + FINE_CELL * window_position(window_cells)


# The network --------------------------------------------------------------------------------------


class JamMa(nn.Module):
    """JamMa on batches of image pairs.

    Images are RGB in 0..1, normalised by `IMAGE_MEAN` and `IMAGE_STD`.

    Example:
        >>> network = JamMa().eval()
        >>> output = network(torch.zeros(1, 3, 64, 96), torch.zeros(1, 3, 64, 96))
        >>> output.keypoints0.shape[1]
        2
    """

    def __init__(self, config: JamMaConfig | None = None) -> None:
        super().__init__()
        self.config = config or JamMaConfig()
        self.backbone = Encoder()
        self.matcher = PairMatcher(self.config)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights of a new network: truncated normal in the encoder, Mamba's own in its
        blocks, torch's defaults elsewhere."""
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.matcher.joint_mamba.layers:
            assert isinstance(block, MambaBlock)
            block.mixer.init_weights(blocks=DIRECTIONS)

    @torch.no_grad()
    def forward(
        self,
        image0: Tensor,
        image1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> JamMaOutput:
        """Match two batches of images; for training see the methods that this one is made of.

        Args:
            image0: (B, 3, H, W), sides multiples of 16.
            image1: (B, 3, H, W), the same size.
            mask0: (B, H/8, W/8) bool, False in padded cells; or None.
            mask1: the same for image 1.
            scale0: (B, 2) factors for the x and y of keypoints0; or None.
            scale1: the same for image 1.

        Raises:
            InputError: a shape does not fit.
        """
        if image0.shape != image1.shape:
            raise InputError(
                f"images of shapes {tuple(image0.shape)} and {tuple(image1.shape)}; "
                "pad the pair to one size"
            )
        features0, features1 = self.encode(image0), self.encode(image1)
        return self.match(features0, features1, mask0, mask1, scale0, scale1)

    @in_its_precision
    def encode(self, image: Tensor) -> JamMaFeatures:
        """Compute the part that depends on one image alone.

        Args:
            image: (B, 3, H, W), sides multiples of 16.

        Raises:
            InputError: a shape does not fit.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(f"image has shape {tuple(image.shape)}, expected (B, 3, H, W)")
        height, width = image.shape[2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or not height or not width:
            raise InputError(
                f"image of {height} x {width} pixels (height x width): both sides must be "
                f"multiples of {SIZE_MULTIPLE}; pad it and pass a mask"
            )
        quarter, eighth = self.backbone(image)
        return JamMaFeatures(self.matcher.image_share(quarter), eighth)

    @torch.no_grad()
    def match(
        self,
        features0: JamMaFeatures,
        features1: JamMaFeatures,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> JamMaOutput:
        """Match the features of two batches of images; arguments as in `forward`."""
        return self.refined(self.matched_cells(features0, features1, mask0, mask1), scale0, scale1)

    @torch.no_grad()
    @in_its_precision
    def matched_cells(
        self,
        features0: JamMaFeatures,
        features1: JamMaFeatures,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> MatchedCells[JamMaFeatures]:
        """The first half of `match`: arguments as there, for `refined`."""
        coarse0, coarse1 = self.coarse_features(features0, features1)
        matches = self.match_coarse(coarse0, coarse1, mask0, mask1)
        return MatchedCells(features0, features1, coarse0, coarse1, matches)

    @torch.no_grad()
    @in_its_precision
    def refined(
        self,
        cells: MatchedCells[JamMaFeatures],
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> JamMaOutput:
        """The second half of `match`: the points in matched cells; scales as in `forward`.

        Where no window passes the fine threshold the released code reports one match of no
        meaning; here there is none.
        """
        matches = cells.matches
        if not len(matches.batch_ids):
            none = cells.coarse0.new_zeros(0, 2)
            ids = matches.batch_ids
            return JamMaOutput(ids, none, none, none[:, 0], matches, ids)
        fine0, fine1 = self.fine_maps(
            cells.features0, cells.features1, cells.coarse0, cells.coarse1, matches
        )
        all_ids = torch.arange(len(matches.batch_ids), device=fine0.device)
        chunk = WINDOW_CHUNK if fine0.device.type == "cpu" else WINDOW_CHUNK_GPU
        parts = [self.refine(fine0, fine1, matches, ids) for ids in all_ids.split(chunk)]
        coarse_ids, points0, points1, scores = (
            torch.cat(part) for part in zip(*parts, strict=True)
        )
        batch_ids = matches.batch_ids[coarse_ids]
        if scale0 is not None:
            points0 = points0 * scale0[batch_ids]
        if scale1 is not None:
            points1 = points1 * scale1[batch_ids]
        return JamMaOutput(batch_ids, points0, points1, scores, matches, coarse_ids)

    # The stages, in order; those that learn are differentiable.

    def coarse_features(
        self, features0: JamMaFeatures, features1: JamMaFeatures
    ) -> tuple[Tensor, Tensor]:
        """Joint Mamba and aggregation: two (B, 256, H/8, W/8).

        Raises:
            InputError: the images of the pair differ in size.
        """
        eighth0, eighth1 = features0.eighth, features1.eighth
        if eighth0.shape != eighth1.shape:
            raise InputError(
                f"1/8 features of shapes {tuple(eighth0.shape)} and {tuple(eighth1.shape)}; "
                "pad the images of a pair to one size"
            )
        code = self.matcher.kenc((eighth0.shape[2], eighth0.shape[3]), like=eighth0)
        both = self.matcher.joint_mamba(eighth0 + code, eighth1 + code)
        return both[: len(eighth0)], both[len(eighth0) :]

    def coarse_similarity(
        self,
        coarse0: Tensor,
        coarse1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, L, L) over all pairs of cells of the `coarse_features`."""
        project = self.matcher.coarse_matching
        temperature = self.config.coarse_temperature
        return similarity(project(coarse0), project(coarse1), temperature, mask0, mask1)

    def match_coarse(
        self,
        coarse0: Tensor,
        coarse1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> CoarseMatches:
        """Pairs of cells picked from the `coarse_features`."""
        grid = (coarse0.shape[2], coarse0.shape[3])
        _check_mask(mask0, len(coarse0), grid)
        _check_mask(mask1, len(coarse0), grid)
        project = self.matcher.coarse_matching
        return match_either_maximum(
            project(coarse0),
            project(coarse1),
            grid,
            grid,
            threshold=self.config.coarse_threshold,
            border=self.config.border,
            temperature=self.config.coarse_temperature,
            mask0=mask0,
            mask1=mask1,
        )

    def fine_maps(
        self,
        features0: JamMaFeatures,
        features1: JamMaFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        matches: CoarseMatches | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Two maps (B, 64, H/2, W/2) from what is known of each image and the `coarse_features`.

        With `matches`, on a CPU, they are complete in the windows of these alone.
        """
        if self.training:  # batch normalisation learns from both images
            shares = torch.cat((features0.fine, features1.fine))
            fine0, fine1 = self.matcher.fine_map(shares, torch.cat((coarse0, coarse1))).chunk(2)
            return fine0, fine1
        wanted0 = wanted1 = ALL_PIXELS
        if matches is not None and coarse0.device.type == "cpu":
            wanted0 = window_pixels(coarse0, matches.batch_ids, matches.ids0)
            wanted1 = window_pixels(coarse1, matches.batch_ids, matches.ids1)
        # One image after the other takes half the memory.
        fine0 = self.matcher.fine_map(features0.fine, coarse0, wanted0)
        return fine0, self.matcher.fine_map(features1.fine, coarse1, wanted1)

    def fine_predictions(
        self, fine0: Tensor, fine1: Tensor, batch_ids: Tensor, ids0: Tensor, ids1: Tensor
    ) -> FinePredictions:
        """Compare the windows of M pairs of coarse cells; the fine maps are those of `fine_maps`.

        Args:
            fine0: (B, 64, H/2, W/2).
            fine1: (B, 64, H/2, W/2).
            batch_ids: (M,) int64.
            ids0: (M,) int64, row-major coarse cells of image 0.
            ids1: (M,) int64, of image 1.
        """
        windows = (fine_windows(fine0, batch_ids, ids0), fine_windows(fine1, batch_ids, ids1))
        tokens = self.matcher.fine_enc(torch.cat(windows, dim=1))
        return FinePredictions(self.matcher.fine_matching(tokens), tokens)

    @torch.no_grad()
    def choose_cells(self, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best pair of cells of each window where it passes the fine threshold.

        The score is the product of the softmaxes over rows and columns. The paper asks for mutual
        nearest neighbours; the single best pair is that anyway.

        Args:
            similarity: (M, 25, 25) logits.

        Returns:
            The windows that pass (N,) int64, their cells in image 0 and in image 1 (N,) int64,
            0..24, and scores (N,) float32.
        """
        similarity = similarity.float()
        scores, best = (similarity.softmax(1) * similarity.softmax(2)).flatten(1).max(1)
        passed = (scores > self.config.fine_threshold).nonzero()[:, 0]
        best = best[passed]
        return passed, best // WINDOW_CELLS, best % WINDOW_CELLS, scores[passed]

    def subpixel_offsets(
        self, tokens: Tensor, windows: Tensor, cells0: Tensor, cells1: Tensor
    ) -> Tensor:
        """Offsets (N, 4), x0 y0 x1 y1 in input pixels within +-1, of cells of chosen windows.

        Args:
            tokens: (M, 50, 64) of all windows.
            windows: (N,) int64, 0 .. M - 1.
            cells0: (N,) int64, 0 .. 24, cells of image 0.
            cells1: (N,) int64, of image 1.
        """
        return FINE_CELL * self.matcher.fine_matching.offsets(tokens, windows, cells0, cells1)

    def refine(
        self, fine0: Tensor, fine1: Tensor, matches: CoarseMatches, coarse_ids: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Which of the given coarse matches stay, with their points 0, points 1 and scores."""
        ids0, ids1 = matches.ids0[coarse_ids], matches.ids1[coarse_ids]
        batch_ids = matches.batch_ids[coarse_ids]
        predictions = self.fine_predictions(fine0, fine1, batch_ids, ids0, ids1)
        kept, cells0, cells1, scores = self.choose_cells(predictions.similarity)
        offsets = self.subpixel_offsets(predictions.tokens, kept, cells0, cells1).float()
        columns = fine0.shape[3] * FINE_CELL // CELL
        points0 = fine_position(ids0[kept], cells0, columns) + offsets[:, :2]
        points1 = fine_position(ids1[kept], cells1, columns) + offsets[:, 2:]
        return coarse_ids[kept], points0, points1, scores


def _check_mask(mask: Tensor | None, batch: int, grid: tuple[int, int]) -> None:
    if mask is not None and tuple(mask.shape) != (batch, *grid):
        raise InputError(f"mask of shape {tuple(mask.shape)}, expected {(batch, *grid)}")
