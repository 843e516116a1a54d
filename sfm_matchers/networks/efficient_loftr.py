"""Efficient LoFTR: semi-dense matching without a detector (Wang et al., CVPR 2024).

The modules follow the paper: local feature extraction (a RepVGG backbone), efficient local feature
transformation (attention on aggregated features), coarse matching, and two-stage refinement. Where
the released code and the paper disagree, the code is followed, because the released weights depend
on it; each such place says so. Parameter names are those of the released checkpoint.

Coordinates in this file are the authors': (x, y) in input pixels, integers are pixel centres, and
(0, 0) is the centre of the top-left pixel. The coarse cell in row r and column c of the 1/8 map
stands for the pixel (8c, 8r). Its fine window is centred there: pixel k of the window (k = 0..7)
stands for 8c + k - 3.5, because three bilinear upsamplings shift the fine map by 3.5 pixels.
Keypoints of image 0 therefore lie on half pixels, and the smallest coordinate is -3.5.

Image sides must be multiples of 32; pad at the right and bottom and pass masks otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.networks.chosen_pixels import ALL_PIXELS, Pixels
from sfm_matchers.networks.coarse_matching import (
    CoarseMatches,
    MatchedCells,
    match_mutual_maximum,
)
from sfm_matchers.networks.precision import (
    check_positive,
    check_precision,
    in_its_precision,
)
from sfm_matchers.networks.similarity import similarity

CELL = 8  # side of a coarse cell in input pixels, and of a fine window
AGGREGATION = 4  # the transformer attends on blocks of 4 x 4 coarse cells
SIZE_MULTIPLE = CELL * AGGREGATION
COARSE_DIM = 256
HEADS = 8
LAYERS = 8  # self and cross attention in turn
BACKBONE_DIMS = (64, 128, 256)  # at 1/2, 1/4 and 1/8
STAGE_BLOCKS = (2, 4, 14)
FINE_DIM = 64
RING = 1  # windows of image 1 have one more pixel on each side
WINDOW1 = CELL + 2 * RING
SECOND_STAGE_DIM = 8  # the last channels of a fine feature serve the second stage only
FEATURE_SCALE = 1 / math.sqrt(COARSE_DIM)
REFINEMENT_CHUNK = 2048  # matches refined at once: bounds the memory of windows and their scores


@dataclass(frozen=True)
class EfficientLoFTRConfig:
    """What may differ between two uses of the same weights."""

    coarse_threshold: float = 0.2
    """A coarse match needs more than this confidence, between 0 and 1."""
    border: int = 2
    """Cells (8 px) along the border of an image, or of its valid part, that are never matched."""
    skip_softmax: bool = False
    """Match by the raw score instead of the dual softmax: the paper's optimised variant."""
    raw_threshold: float = 25.0
    """What the raw score must exceed with `skip_softmax`, in place of `coarse_threshold`."""
    coarse_temperature: float = 0.1
    fine_temperature: float = 10.0
    """Temperature of the second refinement stage."""
    centred_patch: bool = False
    """The second stage looks around the matched pixel, as the paper has it; the released weights
    know another patch (see `second_stage_offsets`)."""
    train_hw: tuple[int, int] = (832, 832)
    """Height and width of the training images (px)."""
    test_hw: tuple[int, int] = (832, 832)
    """Height and width (px) whose positions are rescaled to those of the training images.
    The authors set the long side for images larger than 832."""
    padding: Literal["crop", "pool"] = "crop"
    """How the transformer sees padded images (see `LocalFeatureTransformer`)."""
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
        if self.padding not in ("crop", "pool"):
            raise InputError(f"padding must be 'crop' or 'pool', not {self.padding!r}")

    @classmethod
    def full(cls) -> EfficientLoFTRConfig:
        """The paper's full model."""
        return cls()

    @classmethod
    def opt(cls) -> EfficientLoFTRConfig:
        """The paper's optimised model: the same weights, matched without the dual softmax."""
        return cls(skip_softmax=True)

    @property
    def match_threshold(self) -> float:
        """The threshold of coarse matches, of confidences or of raw scores."""
        return self.raw_threshold if self.skip_softmax else self.coarse_threshold


class EfficientLoFTRFeatures(NamedTuple):
    """What the backbone says about a batch of images; depends on each image alone."""

    half: Tensor  # (B, 64, H/2, W/2)
    quarter: Tensor  # (B, 128, H/4, W/4)
    eighth: Tensor  # (B, 256, H/8, W/8)


@dataclass(frozen=True)
class EfficientLoFTROutput:
    """Matches of a batch of image pairs, sorted by batch id, then by coarse cell of image 0."""

    batch_ids: Tensor
    """(M,) int64: the pair a match belongs to."""
    keypoints0: Tensor
    """(M, 2) x and y in image 0: input pixels, times `scale0` if given."""
    keypoints1: Tensor
    """(M, 2) x and y in image 1, to subpixel precision."""
    scores: Tensor
    """(M,) confidence of the coarse match; its raw score if the config skips the softmax."""
    coarse_ids0: Tensor
    """(M,) int64: row-major cell index in the 1/8 map of image 0."""
    coarse_ids1: Tensor
    """(M,) int64: row-major cell index in the 1/8 map of image 1."""


# Local feature extraction -------------------------------------------------------------------------


class ConvBatchNorm(nn.Module):
    """A convolution without bias, normalised."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class FusedRepVGGBlock(nn.Module):
    """A re-parameterised RepVGG block: one 3 x 3 convolution."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.rbr_reparam = convolution

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.rbr_reparam(x))


class RepVGGBlock(nn.Module):
    """RepVGG block in its training form: 3 x 3, 1 x 1 and, where shapes allow, identity branch."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        keeps_shape = channels_in == channels_out and stride == 1
        self.rbr_identity = nn.BatchNorm2d(channels_in) if keeps_shape else None
        self.rbr_dense = ConvBatchNorm(channels_in, channels_out, 3, stride)
        self.rbr_1x1 = ConvBatchNorm(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rbr_dense(x) + self.rbr_1x1(x)
        if self.rbr_identity is not None:
            out = out + self.rbr_identity(x)
        return F.relu(out)

    @torch.no_grad()
    def fused(self) -> FusedRepVGGBlock:
        """The same function, with running statistics, as one 3 x 3 convolution."""
        dense = self.rbr_dense.conv
        centre = F.pad(self.rbr_1x1.conv.weight, [1, 1, 1, 1])
        branches: list[tuple[Tensor, nn.BatchNorm2d]] = [
            (dense.weight, self.rbr_dense.bn),
            (centre, self.rbr_1x1.bn),
        ]
        if self.rbr_identity is not None:
            identity = torch.zeros_like(dense.weight)
            identity[:, :, 1, 1] = torch.eye(dense.in_channels)
            branches.append((identity, self.rbr_identity))

        convolution = nn.Conv2d(dense.in_channels, dense.out_channels, 3, padding=1)
        convolution.stride = dense.stride
        weight = torch.zeros_like(dense.weight, dtype=torch.float64)
        bias = torch.zeros_like(weight[:, 0, 0, 0])
        for kernel, norm in branches:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            variance = norm.running_var.double() + norm.eps
            gain = norm.weight / variance.sqrt()
            weight += kernel * gain[:, None, None, None]
            bias += norm.bias - norm.running_mean * gain
        convolution.weight = nn.Parameter(weight.to(dense.weight))
        convolution.bias = nn.Parameter(bias.to(dense.weight))
        return FusedRepVGGBlock(convolution)


class RepVGGBackbone(nn.Module):
    """RepVGG with 21 blocks (paper, local feature extraction).

    The paper has its first stage at full resolution; in the code its single block already strides.
    """

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth = BACKBONE_DIMS
        self.layer0: nn.Module = RepVGGBlock(1, half, stride=2)
        self.layer1 = self._stage(half, half, STAGE_BLOCKS[0], stride=1)
        self.layer2 = self._stage(half, quarter, STAGE_BLOCKS[1], stride=2)
        self.layer3 = self._stage(quarter, eighth, STAGE_BLOCKS[2], stride=2)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = RepVGGBlock(channels_in, channels_out, stride)
        rest = [RepVGGBlock(channels_out, channels_out, stride=1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, image: Tensor) -> EfficientLoFTRFeatures:
        """(B, 1, H, W) grey image to feature maps at 1/2, 1/4 and 1/8."""
        half = self.layer1(self.layer0(image).contiguous(memory_format=torch.channels_last))
        quarter = self.layer2(half)
        return EfficientLoFTRFeatures(half, quarter, self.layer3(quarter))

    def fuse(self) -> None:
        """Replace every block by its re-parameterised form."""
        if isinstance(self.layer0, RepVGGBlock):
            self.layer0 = self.layer0.fused()
        for stage in (self.layer1, self.layer2, self.layer3):
            for index, block in enumerate(stage):
                if isinstance(block, RepVGGBlock):
                    stage[index] = block.fused()


# Efficient local feature transformation -----------------------------------------------------------


class RotaryTable(NamedTuple):
    """Cosine and sine of the angle of each channel pair at each grid position, (h*w, 128)."""

    cos: Tensor
    sin: Tensor


def rotary_table(
    grid_hw: tuple[int, int], position_scale: tuple[float, float], like: Tensor
) -> RotaryTable:
    """2D rotary positional encoding of a 1/32 grid, row-major.

    Positions count from 1 and are multiplied by `position_scale` (y, x). Channel pairs alternate
    between y and x and the frequencies run over all 256 channels, so that each head sees its own
    band; the paper's formula has x first and the frequencies one step later.

    Args:
        grid_hw: rows and columns of the grid.
        position_scale: factors of the row and the column number.
        like: a tensor with the device and dtype of the table.
    """
    rows, columns = grid_hw
    device = like.device
    pairs = torch.arange(COARSE_DIM // 4, device=device, dtype=torch.float32)
    frequency = torch.pow(10000.0, -pairs / (COARSE_DIM // 4))
    y = torch.arange(1, rows + 1, device=device) * position_scale[0]
    x = torch.arange(1, columns + 1, device=device) * position_scale[1]
    angle_y = (y[:, None] * frequency)[:, None, :].expand(rows, columns, -1)
    angle_x = (x[:, None] * frequency)[None, :, :].expand(rows, columns, -1)
    angle = torch.stack([angle_y, angle_x], dim=-1).reshape(rows * columns, COARSE_DIM // 2)
    # The released weights were trained with tables rounded to float16.
    return RotaryTable(angle.cos().half().to(like.dtype), angle.sin().half().to(like.dtype))


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate consecutive channel pairs of (B, L, 256) tokens by the angles of their position."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = (even * table.cos - odd * table.sin, odd * table.cos + even * table.sin)
    return torch.stack(rotated, dim=-1).flatten(-2)


class AggregatedAttentionLayer(nn.Module):
    """Attention between features aggregated over 4 x 4 cells, then a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        dim = COARSE_DIM
        self.aggregate = nn.Conv2d(dim, dim, AGGREGATION, AGGREGATION, groups=dim, bias=False)
        self.norm1 = nn.LayerNorm(dim)  # of queries and of keys
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.merge = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim, bias=False),
            nn.LeakyReLU(0.01),
            nn.Linear(2 * dim, dim, bias=False),
        )
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        tables: tuple[RotaryTable, RotaryTable] | None = None,
        valid_x: Tensor | None = None,
        valid_source: Tensor | None = None,
    ) -> Tensor:
        """Update x (B, 256, h, w) by what it finds in source (B, 256, h', w').

        Args:
            x, source: 1/8 feature maps.
            tables: rotary tables of the grids of x and source; without, positions are not encoded.
            valid_x, valid_source: (B, h/4, w/4) bool, True where the aggregated grid is valid.
                Invalid positions are not attended to and receive no message.
        """
        queries = self.aggregate(x)
        grid_hw = queries.shape[2:]
        queries = self.norm1(_tokens(queries))
        keys = self.norm1(_tokens(F.max_pool2d(source, AGGREGATION)))
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(keys)
        if tables is not None:
            q, k = rotate(q, tables[0]), rotate(k, tables[1])

        attention_mask = None if valid_source is None else valid_source.flatten(1)[:, None, None]
        message = F.scaled_dot_product_attention(
            _split_heads(q), _split_heads(k), _split_heads(v), attn_mask=attention_mask
        )
        message = self.merge(message.transpose(1, 2).flatten(2))
        if valid_x is not None:
            message = message * valid_x.flatten(1)[:, :, None]

        message = message.transpose(1, 2).unflatten(2, grid_hw)
        message = F.interpolate(message, scale_factor=AGGREGATION, mode="bilinear")
        update = self.norm2(self.mlp(torch.cat([x.movedim(1, -1), message.movedim(1, -1)], dim=-1)))
        return x + update.movedim(-1, 1)


def _tokens(feature_map: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h*w, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def _split_heads(tokens: Tensor) -> Tensor:
    """(B, L, 256) to (B, 8, L, 32)."""
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)


class LocalFeatureTransformer(nn.Module):
    """Four times self attention with rotary positions and cross attention without.

    Padded images, with `padding` of the config:

    - "crop": each map is cropped to the valid part, rounded down to whole blocks of 4 x 4 cells,
      transformed as if it were the image, and padded with zeros again. This is what the authors'
      code does with a single pair.
    - "pool": attention leaves out blocks without a valid cell, the rest of the layer runs
      on all cells. This is what the authors' code does with a batch of pairs, thus in training.

    Either way a pair gets the same result alone and in a batch (the authors' code switches between
    the two by the size of the batch). Both sides of an image may be padded.
    """

    def __init__(self, config: EfficientLoFTRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AggregatedAttentionLayer() for _ in range(LAYERS))
        self.padding = config.padding
        (train_h, train_w), (test_h, test_w) = config.train_hw, config.test_hw
        self.position_scale = (train_h / test_h, train_w / test_w)

    def forward(
        self, map0: Tensor, map1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Transform the 1/8 maps (B, 256, h, w) of both images; masks are (B, h, w) bool."""
        if mask0 is None and mask1 is None:
            return self._attend(map0, map1)
        extent0, extent1 = _valid_extent(mask0, map0), _valid_extent(mask1, map1)
        if self.padding == "pool":
            grid0, grid1 = _pooled_mask(extent0, map0), _pooled_mask(extent1, map1)
            return self._attend(map0, map1, grid0, grid1)
        return self._attend_cropped(map0, map1, torch.cat([extent0, extent1], dim=1))

    def _attend(
        self, map0: Tensor, map1: Tensor, grid0: Tensor | None = None, grid1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        table0, table1 = self._rotary_table(map0), self._rotary_table(map1)
        # Most of a layer works on single cells, whose channels had better lie side by side.
        map0, map1 = (x.contiguous(memory_format=torch.channels_last) for x in (map0, map1))
        for self_layer, cross_layer in zip(self.layers[::2], self.layers[1::2], strict=True):
            map0 = self_layer(map0, map0, (table0, table0), grid0, grid0)
            map1 = self_layer(map1, map1, (table1, table1), grid1, grid1)
            map0 = cross_layer(map0, map1, None, grid0, grid1)
            # Image 1 attends to the updated image 0: the weights were trained this way.
            map1 = cross_layer(map1, map0, None, grid1, grid0)
        return map0, map1

    def _attend_cropped(self, map0: Tensor, map1: Tensor, extents: Tensor) -> tuple[Tensor, Tensor]:
        out0, out1 = torch.zeros_like(map0), torch.zeros_like(map1)
        extents = extents // AGGREGATION * AGGREGATION
        if (extents == 0).any():
            raise InputError(
                f"the valid part of an image is less than {SIZE_MULTIPLE} px wide or high"
            )
        for extent in extents.unique(dim=0):
            pairs = (extents == extent).all(dim=1).nonzero()[:, 0]
            h0, w0, h1, w1 = extent.tolist()
            cropped = self._attend(map0[pairs, :, :h0, :w0], map1[pairs, :, :h1, :w1])
            out0[pairs, :, :h0, :w0], out1[pairs, :, :h1, :w1] = cropped
        return out0, out1

    def _rotary_table(self, feature_map: Tensor) -> RotaryTable:
        rows, columns = feature_map.shape[2:]
        grid_hw = (rows // AGGREGATION, columns // AGGREGATION)
        return rotary_table(grid_hw, self.position_scale, like=feature_map)


def _valid_extent(mask: Tensor | None, feature_map: Tensor) -> Tensor:
    """Valid rows and columns (B, 2) of a mask (B, h, w); the whole map where there is no mask."""
    size = feature_map.shape[2:]
    if mask is None:
        return torch.tensor(size, device=feature_map.device).expand(len(feature_map), 2)
    if mask.shape != (len(feature_map), *size) or mask.dtype != torch.bool:
        raise InputError(
            f"a mask must be bool of shape {(len(feature_map), *size)}, "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    extent = torch.stack([mask[:, :, 0].sum(1), mask[:, 0].sum(1)], dim=1)
    rectangle = _extent_mask(extent, size)
    if not torch.equal(mask, rectangle):
        raise InputError("a mask must be True in a rectangle at the top left and False elsewhere")
    return extent


def _extent_mask(extent: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, h, w) bool, True in the first rows and columns given by extent (B, 2)."""
    rows = torch.arange(size[0], device=extent.device) < extent[:, :1]
    columns = torch.arange(size[1], device=extent.device) < extent[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def _pooled_mask(extent: Tensor, feature_map: Tensor) -> Tensor:
    """(B, h/4, w/4) bool, True where a block of 4 x 4 cells holds a valid cell."""
    rows, columns = feature_map.shape[2:]
    blocks = (extent + AGGREGATION - 1) // AGGREGATION
    return _extent_mask(blocks, (rows // AGGREGATION, columns // AGGREGATION))


# Fine features ------------------------------------------------------------------------------------


def _upsample(feature_map: Tensor) -> Tensor:
    return F.interpolate(feature_map, scale_factor=2, mode="bilinear")


class FineFusion(nn.Module):
    """Fuse transformed coarse features with the backbone's maps.

    The paper upsamples the result to full resolution; `fine_windows` does, where it is needed.
    """

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth = BACKBONE_DIMS
        self.layer3_outconv = nn.Conv2d(eighth, eighth, 1, bias=False)
        self.layer2_outconv = nn.Conv2d(quarter, eighth, 1, bias=False)
        self.layer2_outconv2 = self._merge(eighth, quarter)
        self.layer1_outconv = nn.Conv2d(half, quarter, 1, bias=False)
        self.layer1_outconv2 = self._merge(quarter, FINE_DIM)

    @staticmethod
    def _merge(channels_in: int, channels_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_in, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_in),
            nn.LeakyReLU(0.01),
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        )

    def forward(
        self, features: EfficientLoFTRFeatures, coarse: Tensor, wanted: Pixels = ALL_PIXELS
    ) -> Tensor:
        """Fine map (B, H/2, W/2, 64), of which the wanted pixels are computed, from backbone
        features and transformed map (B, 256, h, w)."""
        merged = wanted.dilated().dilated()
        at_quarter = merged.halved()
        fine = self.layer3_outconv(coarse * FEATURE_SCALE)
        fine = self._fuse(
            fine, features.quarter, self.layer2_outconv, self.layer2_outconv2, at_quarter
        )
        fine = self._fuse(fine, features.half, self.layer1_outconv, self.layer1_outconv2, wanted)
        return fine.movedim(1, -1).contiguous()

    @staticmethod
    def _fuse(
        coarser: Tensor, finer: Tensor, project: nn.Conv2d, merge: nn.Sequential, wanted: Pixels
    ) -> Tensor:
        """Add the projected finer map to the coarser one, upsampled, and convolve the sum twice."""
        first, norm, activation, last = merge
        assert isinstance(first, nn.Conv2d)
        assert isinstance(last, nn.Conv2d)
        at_first = wanted.dilated()
        at_sum = at_first.dilated()
        x = at_sum.put(at_sum.take(_upsample(coarser)) + project(at_sum.take(finer)))
        x = activation(norm(at_first.convolve(x, first.weight)))
        return wanted.put(wanted.convolve(at_first.put(x), last.weight))


def window_pixels(coarse: Tensor, batch_ids: Tensor, cell_ids: Tensor) -> Pixels:
    """The pixels of fine maps that the windows of chosen cells of (B, C, h, w) are made of."""
    cells = torch.zeros(len(coarse), *coarse.shape[2:], dtype=torch.bool, device=coarse.device)
    cells.flatten(1)[batch_ids, cell_ids] = True
    side = CELL // 2
    return Pixels(cells.repeat_interleave(side, 1).repeat_interleave(side, 2)).dilated()


def fine_windows(fine_map: Tensor, batch_ids: Tensor, cell_ids: Tensor, ring: int) -> Tensor:
    """Full-resolution fine features of coarse cells and a ring of neighbours; zero off the image.

    The last bilinear upsampling is done here, for the asked windows only.

    Args:
        fine_map: (B, H/2, W/2, 64).
        batch_ids, cell_ids: (M,) image and row-major coarse cell of each window.
        ring: 0 or 1 pixels added on each side of the 8 x 8 cell.

    Returns:
        (M, (8 + 2 ring)^2, 64), pixels row-major.
    """
    height, width = fine_map.shape[1:3]
    cell, device = CELL // 2, fine_map.device
    row, column = cell_ids // (width // cell), cell_ids % (width // cell)
    neighbours = torch.arange(-1, cell + 1, device=device)
    y = (row[:, None] * cell + neighbours).clamp(0, height - 1)
    x = (column[:, None] * cell + neighbours).clamp(0, width - 1)
    patches = fine_map[batch_ids[:, None, None], y[:, :, None], x[:, None, :]]  # (M, 6, 6, 64)

    identity = torch.eye(len(neighbours), device=device, dtype=fine_map.dtype)
    upsample = F.interpolate(identity[None], scale_factor=2, mode="linear")[
        0, :, 2 - ring : 10 + ring
    ]
    # Rows and columns by one product: (64 or 100, 36) on (M, 36, 64).
    windows = torch.kron(upsample, upsample).mT @ patches.flatten(1, 2)

    pixels = torch.arange(-ring, CELL + ring, device=device)
    y_inside = _is_inside(row[:, None] * CELL + pixels, 2 * height)
    x_inside = _is_inside(column[:, None] * CELL + pixels, 2 * width)
    inside = y_inside[:, :, None] & x_inside[:, None, :]
    return windows * inside.flatten(1)[..., None]


def match_windows(
    fine0: Tensor, fine1: Tensor, batch_ids: Tensor, ids0: Tensor, ids1: Tensor
) -> tuple[Tensor, Tensor]:
    """Windows (M, 64, 64) of image 0 and (M, 100, 64) of image 1 at M coarse matches."""
    windows0 = fine_windows(fine0, batch_ids, ids0, ring=0)
    return windows0, fine_windows(fine1, batch_ids, ids1, ring=RING)


def _is_inside(positions: Tensor, size: int) -> Tensor:
    return (positions >= 0) & (positions < size)


# Two-stage refinement -----------------------------------------------------------------------------


def first_stage_log_confidence(windows0: Tensor, windows1: Tensor) -> Tensor:
    """Log of the dual softmax between the pixels of two windows (M, 64, 64).

    The softmax runs over all 100 pixels of window 1, of which the inner 64 are kept.

    Args:
        windows0: (M, 64, 64) pixels of the 8 x 8 windows of image 0, features last.
        windows1: (M, 100, 64) pixels of the 10 x 10 windows of image 1.
    """
    channels = slice(0, FINE_DIM - SECOND_STAGE_DIM)
    # Scaled by the square root of all 64 channels, though 56 take part.
    logits = windows0[..., channels] @ windows1[..., channels].mT / FINE_DIM
    confidence = logits.log_softmax(dim=1) + logits.log_softmax(dim=2)
    inner = confidence.unflatten(2, (WINDOW1, WINDOW1))[..., RING:-RING, RING:-RING]
    return inner.flatten(2)


def second_stage_offsets(
    windows0: Tensor,
    windows1: Tensor,
    window_ids: Tensor,
    pixels0: Tensor,
    pixels1: Tensor,
    config: EfficientLoFTRConfig,
) -> Tensor:
    """Subpixel offset (N, 2), x and y in [-1, 1] px, to add to the pixel of image 1.

    The expectation over 3 x 3 pixels of full resolution: those around the matched pixel, as in the
    paper, with `centred_patch`. The released weights were trained on others: the inner pixel
    indexes the 10 x 10 window without the ring's offset, so their patch lies one pixel up and to
    the left, and at row or column -1 it wraps around to 9.

    Args:
        windows0, windows1: (M, 64, 64) and (M, 100, 64).
        window_ids: (N,) the pair of windows of each pixel match.
        pixels0, pixels1: (N,) row-major pixels of the 8 x 8 cells matched by the first stage.
        config: for `fine_temperature`, which divides the responses, and `centred_patch`.
    """
    steps = torch.tensor([-1, 0, 1], device=pixels1.device)
    ring = int(config.centred_patch)
    rows = (pixels1[:, None] // CELL + ring + steps) % WINDOW1
    columns = (pixels1[:, None] % CELL + ring + steps) % WINDOW1
    patch = (rows[:, :, None] * WINDOW1 + columns[:, None, :]).flatten(1)  # (N, 9)

    queries = windows0[window_ids, pixels0, -SECOND_STAGE_DIM:]
    keys = windows1[window_ids[:, None], patch, -SECOND_STAGE_DIM:]
    responses = (keys @ queries[:, :, None])[..., 0] / math.sqrt(SECOND_STAGE_DIM)
    weights = (responses / config.fine_temperature).softmax(dim=1)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(9, 2)
    return weights @ offsets.to(weights.dtype)


def window_position(pixels: Tensor) -> Tensor:
    """x and y (N, 2) of row-major window pixels (N,), relative to the point of their cell."""
    return torch.stack([pixels % CELL, pixels // CELL], dim=-1) - (CELL - 1) / 2


def cell_position(cell_ids: Tensor, columns: int) -> Tensor:
    """x and y (N, 2) in input pixels of row-major cells (N,) of a 1/8 map that wide."""
    return torch.stack([cell_ids % columns, cell_ids // columns], dim=-1) * CELL


# The network --------------------------------------------------------------------------------------


class EfficientLoFTR(nn.Module):
    """Efficient LoFTR.

    Example:
        >>> network = EfficientLoFTR().eval()
        >>> image0, image1 = torch.rand(1, 1, 64, 96), torch.rand(1, 1, 96, 64)
        >>> with torch.no_grad():
        ...     matches = network(image0, image1)
        >>> matches.keypoints0.shape == (len(matches.scores), 2)
        True
    """

    def __init__(self, config: EfficientLoFTRConfig | None = None) -> None:
        super().__init__()
        self.config = config or EfficientLoFTRConfig()
        self.backbone = RepVGGBackbone()
        self.loftr_coarse = LocalFeatureTransformer(self.config)
        self.fine_preprocess = FineFusion()
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weights a training starts from."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for parameter in self.loftr_coarse.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def fuse(self) -> EfficientLoFTR:
        """Re-parameterise the backbone in place, for inference: faster, the same results."""
        self.backbone.fuse()
        return self

    def forward(
        self,
        image0: Tensor,
        image1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> EfficientLoFTROutput:
        """Match pairs of images; the two images of a pair may differ in size.

        Args:
            image0, image1: (B, 1, H, W) grey in [0, 1]; H and W multiples of 32.
            mask0, mask1: (B, H/8, W/8) bool, True in the valid top-left rectangle of cells.
            scale0, scale1: (B, 2) factors of x and y that take input pixels to the caller's.

        Raises:
            InputError: an image or a mask has a wrong shape.
        """
        features0, features1 = self.encode_pair(image0, image1)
        return self.match(features0, features1, mask0, mask1, scale0, scale1)

    @in_its_precision
    def encode(self, image: Tensor) -> EfficientLoFTRFeatures:
        """Features of images (B, 1, H, W), each independent of the image it is matched with."""
        if image.dim() != 4 or image.shape[1] != 1:
            raise InputError(f"expected grey images (B, 1, H, W), not {tuple(image.shape)}")
        height, width = image.shape[2:]
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or not height * width:
            raise InputError(
                f"image sides must be multiples of {SIZE_MULTIPLE}, not {height} x {width}: "
                "pad the image and pass a mask"
            )
        return self.backbone(image)

    def encode_pair(
        self, image0: Tensor, image1: Tensor
    ) -> tuple[EfficientLoFTRFeatures, EfficientLoFTRFeatures]:
        """Features of both images.

        In training they are made by one call where their shapes agree: batch normalisation then
        sees both images, as in the authors' code. Otherwise one after the other takes less memory.
        """
        if not self.training or image0.shape != image1.shape:
            return self.encode(image0), self.encode(image1)
        both = self.encode(torch.cat([image0, image1]))
        maps0, maps1 = zip(*(feature_map.chunk(2) for feature_map in both), strict=True)
        return EfficientLoFTRFeatures(*maps0), EfficientLoFTRFeatures(*maps1)

    def match(
        self,
        features0: EfficientLoFTRFeatures,
        features1: EfficientLoFTRFeatures,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> EfficientLoFTROutput:
        """Match images by the features of `encode`; arguments and result as in `forward`."""
        return self.refined(self.matched_cells(features0, features1, mask0, mask1), scale0, scale1)

    @in_its_precision
    def matched_cells(
        self,
        features0: EfficientLoFTRFeatures,
        features1: EfficientLoFTRFeatures,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> MatchedCells[EfficientLoFTRFeatures]:
        """The first half of `match`: arguments as there, for `refined`."""
        coarse0, coarse1 = self.transform(features0, features1, mask0, mask1)
        matches = self.match_coarse(coarse0, coarse1, mask0, mask1)
        return MatchedCells(features0, features1, coarse0, coarse1, matches)

    @in_its_precision
    def refined(
        self,
        cells: MatchedCells[EfficientLoFTRFeatures],
        scale0: Tensor | None = None,
        scale1: Tensor | None = None,
    ) -> EfficientLoFTROutput:
        """The second half of `match`: the points in matched cells; scales as in `forward`."""
        matches = cells.matches
        keypoints0 = cell_position(matches.ids0, cells.coarse0.shape[3]).float()
        keypoints1 = cell_position(matches.ids1, cells.coarse1.shape[3]).float()
        if len(matches.scores):
            fine0, fine1 = self.fine_maps(
                cells.features0, cells.features1, cells.coarse0, cells.coarse1, matches
            )
            offsets0, offsets1 = self.refine(fine0, fine1, matches)
            keypoints0, keypoints1 = keypoints0 + offsets0, keypoints1 + offsets1
        if scale0 is not None:
            keypoints0 = keypoints0 * scale0[matches.batch_ids]
        if scale1 is not None:
            keypoints1 = keypoints1 * scale1[matches.batch_ids]
        return EfficientLoFTROutput(
            batch_ids=matches.batch_ids,
            keypoints0=keypoints0,
            keypoints1=keypoints1,
            scores=matches.scores,
            coarse_ids0=matches.ids0,
            coarse_ids1=matches.ids1,
        )

    def transform(
        self,
        features0: EfficientLoFTRFeatures,
        features1: EfficientLoFTRFeatures,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """1/8 maps (B, 256, h, w) of both images, each informed by the other."""
        return self.loftr_coarse(features0.eighth, features1.eighth, mask0, mask1)

    def coarse_logits(
        self,
        coarse0: Tensor,
        coarse1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> Tensor:
        """Scores (B, L0, L1) between the cells of two transformed 1/8 maps, row-major."""
        with torch.autocast(coarse0.device.type, enabled=False):  # scores reach far beyond 60
            tokens0, tokens1 = _tokens(coarse0).float(), _tokens(coarse1).float()
            return similarity(tokens0, tokens1, self.config.coarse_temperature, mask0, mask1)

    def match_coarse(
        self,
        coarse0: Tensor,
        coarse1: Tensor,
        mask0: Tensor | None = None,
        mask1: Tensor | None = None,
    ) -> CoarseMatches:
        """Mutual nearest cells of two transformed 1/8 maps that pass the threshold."""
        return match_mutual_maximum(
            _tokens(coarse0),
            _tokens(coarse1),
            (coarse0.shape[2], coarse0.shape[3]),
            (coarse1.shape[2], coarse1.shape[3]),
            threshold=self.config.match_threshold,
            border=self.config.border,
            temperature=self.config.coarse_temperature,
            mask0=mask0,
            mask1=mask1,
            softmax=not self.config.skip_softmax,
        )

    def fine_maps(
        self,
        features0: EfficientLoFTRFeatures,
        features1: EfficientLoFTRFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        matches: CoarseMatches | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fine feature maps (B, H/2, W/2, 64) of both images.

        With `matches`, on a CPU, they are complete in the windows of these alone.
        """
        if self.training and coarse0.shape == coarse1.shape:
            both = EfficientLoFTRFeatures(
                *(torch.cat(maps) for maps in zip(features0, features1, strict=True))
            )
            fine0, fine1 = self.fine_preprocess(both, torch.cat([coarse0, coarse1])).chunk(2)
            return fine0, fine1
        wanted0 = wanted1 = ALL_PIXELS
        if matches is not None and coarse0.device.type == "cpu":
            wanted0 = window_pixels(coarse0, matches.batch_ids, matches.ids0)
            wanted1 = window_pixels(coarse1, matches.batch_ids, matches.ids1)
        fine0 = self.fine_preprocess(features0, coarse0, wanted0)
        return fine0, self.fine_preprocess(features1, coarse1, wanted1)

    def refine(self, fine0: Tensor, fine1: Tensor, matches: CoarseMatches) -> tuple[Tensor, Tensor]:
        """Positions (M, 2) in both images relative to the matched cells (px)."""
        parts = [
            self.refine_windows(
                fine0, fine1, matches.batch_ids[chunk], matches.ids0[chunk], matches.ids1[chunk]
            )
            for chunk in torch.arange(len(matches.ids0)).split(REFINEMENT_CHUNK)
        ]
        offsets0, offsets1 = (torch.cat(part) for part in zip(*parts, strict=True))
        return offsets0, offsets1

    def refine_windows(
        self, fine0: Tensor, fine1: Tensor, batch_ids: Tensor, ids0: Tensor, ids1: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`refine` of matches given as (M,) pairs of images and coarse cells, all at once."""
        windows0, windows1 = match_windows(fine0, fine1, batch_ids, ids0, ids1)
        best = first_stage_log_confidence(windows0, windows1).flatten(1).argmax(dim=1)
        pixels0, pixels1 = best // CELL**2, best % CELL**2
        subpixel = second_stage_offsets(
            windows0,
            windows1,
            torch.arange(best.shape[0], device=best.device),
            pixels0,
            pixels1,
            self.config,
        )
        return window_position(pixels0), window_position(pixels1) + subpixel
