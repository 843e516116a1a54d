"""MambaGlue: match the local features of two images with attention and a state space model.

Ryoo, Lim and Myung, "MambaGlue: Fast and Robust Local Feature Matching With Mamba", ICRA 2025.
The file reads in the order of the paper: positional encoding, MambaAttention mixer,
cross-attention, match assignment, deep confidence score regressor, exit test. All but the mixer
and the regressor is LightGlue (Lindenberger et al., ICCV 2023). The names of the parameters are
the authors'; where their code departs from the paper, the code is followed and a comment says so.

Two properties a user should know:

- The state space model runs along the list of keypoints, so **their order changes the result**
  (see `MambaGlueConfig.keypoint_order`). Swapping the two images only swaps the result.
- A pair gives the same result alone and in a batch, whatever the other pairs of the batch are:
  padding never reaches a keypoint, and each pair stops and is pruned by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.networks.precision import check_precision, in_its_precision
from sfm_matchers.networks.selective_scan import selective_scan

__all__ = [
    "FRONT_ENDS",
    "LayerOutputs",
    "LocalFeatures",
    "MambaGlue",
    "MambaGlueConfig",
    "MambaGlueMatches",
]


class FrontEnd(NamedTuple):
    """What a detector delivers for each keypoint."""

    descriptor_dim: int
    has_scale_and_orientation: bool


FRONT_ENDS = {
    "superpoint": FrontEnd(256, False),
    "disk": FrontEnd(128, False),
    "aliked": FrontEnd(128, False),
    "sift": FrontEnd(128, True),
    "doghardnet": FrontEnd(128, True),
}
KEYPOINT_ORDERS = ("as_is", "score")


@dataclass(frozen=True)
class MambaGlueConfig:
    """Choices of the network; the defaults are the authors'.

    Attributes:
        features: front-end whose descriptors are matched, a key of `FRONT_ENDS`.
        num_layers: layers of self- and cross-attention.
        dim: channels of a keypoint's state, divisible by `num_heads`.
        num_heads: attention heads.
        depth_confidence: a pair stops after a layer where more than this share of its keypoints is
            confident (LightGlue: 0.95); 0 or less never stops early.
        width_confidence: after each layer, keypoints that look unmatchable with more than this
            certainty leave the pair (LightGlue: 0.99); 0 or less keeps all.
        pruning_min_keypoints: an image with so many keypoints or fewer is not pruned. The authors
            use 0 on CPU, 1024 on CUDA and 1536 on CUDA with flash attention, by device.
        filter_threshold: a match needs a larger score than this, 0..1 (LightGlue: 0.1).
        keypoint_order: "as_is" scans the keypoints in the given order, like the authors' code;
            "score" scans them from the highest detection score to the lowest, the order in which
            the published training recipe presents SuperPoint keypoints. Results are always in
            the given order.
        precision: of matrix products; "float16" is for GPUs.
    """

    features: str = "superpoint"
    num_layers: int = 9
    dim: int = 256
    num_heads: int = 4
    depth_confidence: float = -1.0
    width_confidence: float = -1.0
    pruning_min_keypoints: int = 0
    filter_threshold: float = 0.01
    keypoint_order: str = "as_is"
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.features not in FRONT_ENDS:
            known = ", ".join(FRONT_ENDS)
            raise InputError(f"unknown features {self.features!r}, choose one of {known}")
        if self.keypoint_order not in KEYPOINT_ORDERS:
            known = ", ".join(KEYPOINT_ORDERS)
            raise InputError(f"unknown order {self.keypoint_order!r}, choose one of {known}")
        if not (1 <= self.num_layers <= 64 and self.num_heads >= 1 and 1 <= self.dim <= 4096):
            raise InputError("num_layers and num_heads must be at least 1, dim 4096 at most")
        if self.dim % (4 * self.num_heads):
            raise InputError(
                f"dim {self.dim} must be a multiple of 4 * num_heads, {4 * self.num_heads}"
            )

    @property
    def front_end(self) -> FrontEnd:
        """What the chosen detector delivers."""
        return FRONT_ENDS[self.features]


@dataclass(frozen=True)
class LocalFeatures:
    """Keypoints of one image of each of B pairs, padded at the end to a common number M.

    Attributes:
        keypoints: (B, M, 2) positions x, y in pixels. Only differences between positions matter,
            so the pixel the origin lies in does not.
        descriptors: (B, M, D), as the detector gives them.
        image_size: (B, 2) width, height in pixels; None takes the extent of the keypoints.
        scales: (B, M) in pixels; only for front-ends with scale and orientation.
        oris: (B, M) orientations in radians; only for front-ends with scale and orientation.
        scores: (B, M) detection scores; only for `keypoint_order="score"`.
        num_keypoints: (B,) how many of the M are keypoints, the others being padding; None: all.
    """

    keypoints: Tensor
    descriptors: Tensor
    image_size: Tensor | None = None
    scales: Tensor | None = None
    oris: Tensor | None = None
    scores: Tensor | None = None
    num_keypoints: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """(B, M) bool, false at padding."""
        batch, most = self.keypoints.shape[:2]
        rank = torch.arange(most, device=self.keypoints.device).expand(batch, most)
        return rank < self.counts[:, None]

    @property
    def counts(self) -> Tensor:
        """(B,) int64 number of keypoints."""
        if self.num_keypoints is not None:
            return self.num_keypoints.long()
        batch, most = self.keypoints.shape[:2]
        return torch.full((batch,), most, device=self.keypoints.device)

    def select(self, pairs: Tensor | Sequence[int]) -> LocalFeatures:
        """Keep the pairs chosen by a (B,) mask or by their indices."""
        present = {
            item.name: value[pairs]
            for item in fields(self)
            if (value := getattr(self, item.name)) is not None
        }
        return LocalFeatures(**present)

    def require(self, field: str) -> Tensor:
        """Return a field that may be None, or raise InputError where it is."""
        value = getattr(self, field)
        if value is None:
            raise InputError(f"the features lack {field}, which this configuration needs")
        return value


@dataclass
class MambaGlueMatches:
    """Matches of B pairs, in the order of the given keypoints.

    `MambaGlue.forward` writes into the tensors as pairs come to an end.

    Attributes:
        matches0: (B, M) int64, index of the partner in image 1; -1: none.
        matches1: (B, N) int64, index of the partner in image 0; -1: none.
        matching_scores0: (B, M) score of the mutual best partner, also where it is too low for a
            match; 0: no mutual best partner.
        matching_scores1: (B, N), the same score at the partner.
        stop: (B,) int64, layers run; counts the layer that could not start because no keypoint
            was left, so 1 for an image without keypoints.
        prune0: (B, M) int64, 1 + number of prunings the keypoint survived; `num_layers` with
            pruning switched off; 0 at padding.
        prune1: (B, N) int64.
    """

    matches0: Tensor
    matches1: Tensor
    matching_scores0: Tensor
    matching_scores1: Tensor
    stop: Tensor
    prune0: Tensor
    prune1: Tensor

    def of_pair(self, pair: int) -> tuple[Tensor, Tensor]:
        """List the matches of one pair: (S, 2) indices in images 0 and 1, and (S,) scores."""
        matched = torch.nonzero(self.matches0[pair] >= 0).flatten()
        indices = torch.stack([matched, self.matches0[pair, matched]], dim=1)
        return indices, self.matching_scores0[pair, matched]


@dataclass(frozen=True)
class LayerOutputs:
    """What training looks at after every layer, in the order of the given keypoints.

    Attributes:
        log_assignments: of each layer, (B, M + 1, N + 1) as in `MatchAssignment`.
        confidence_logits0: of each layer but the last, (B, M), before the sigmoid.
        confidence_logits1: of each layer but the last, (B, N).
        valid0: (B, M) bool, false at padding.
        valid1: (B, N) bool.
    """

    log_assignments: list[Tensor]
    confidence_logits0: list[Tensor]
    confidence_logits1: list[Tensor]
    valid0: Tensor
    valid1: Tensor


def normalize_keypoints(features: LocalFeatures) -> Tensor:
    """Centre the keypoints on the image and divide both axes by half its longer side: (B, M, 2).

    Without image size, the size is 1 + the largest - the smallest coordinate of each axis.
    """
    keypoints, size = features.keypoints, features.image_size
    if keypoints.shape[1] == 0:
        return keypoints
    if size is None:
        padding = ~features.valid[..., None]
        largest = keypoints.masked_fill(padding, -math.inf).amax(dim=1)
        smallest = keypoints.masked_fill(padding, math.inf).amin(dim=1)
        size = 1 + largest - smallest
    size = size.to(keypoints)
    return (keypoints - size[:, None] / 2) / (size.amax(dim=-1)[:, None, None] / 2)


class FourierPositionalEncoding(nn.Module):
    """Angles of the rotary encoding, from learned frequencies (LightGlue, section 3.1)."""

    def __init__(self, input_dim: int, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(input_dim, head_dim // 2, bias=False)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.Wr.weight)

    def forward(self, positions: Tensor) -> Tensor:
        """Encode (B, M, input_dim) as cosines and sines: (2, B, 1, M, head_dim)."""
        angles = self.Wr(positions)
        encoding = torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)
        return encoding.repeat_interleave(2, dim=-1)


def rotate(encoding: Tensor, vectors: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels of (B, heads, M, head_dim) by its angle."""
    even, odd = vectors[..., 0::2], vectors[..., 1::2]
    quarter_turn = torch.stack([-odd, even], dim=-1).flatten(-2)
    return vectors * encoding[0] + quarter_turn * encoding[1]


def attend(query: Tensor, key: Tensor, value: Tensor, valid_keys: Tensor | None) -> Tensor:
    """Softmax attention of (B, heads, M, head_dim) on N valid keys, heads joined: (B, M, dim)."""
    mask = None if valid_keys is None else valid_keys[:, None, None, :]
    message = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return message.transpose(1, 2).flatten(-2)


class FeedForward(nn.Sequential):
    """The two-layer network that turns a state and its messages into an update of the state."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__(
            nn.Linear(input_dim, 2 * dim), nn.LayerNorm(2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    @property
    def first(self) -> nn.Linear:
        layer = self[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def last(self) -> nn.Linear:
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


@torch.no_grad()
def fold_projections(following: nn.Linear, projections: Sequence[nn.Module | None]) -> None:
    """Make a linear layer on joined inputs take them as they were before their projections.

    Args:
        following: on the inputs side by side, of equal widths; changed in place.
        projections: the `Linear` of each input, or None.
    """
    weight, bias = following.weight.double(), following.bias.double()
    parts = list(weight.chunk(len(projections), dim=1))
    for index, projection in enumerate(projections):
        if isinstance(projection, nn.Linear):
            if projection.bias is not None:
                bias = bias + parts[index] @ projection.bias.double()
            parts[index] = parts[index] @ projection.weight.double()
    following.weight.copy_(torch.cat(parts, dim=1))
    following.bias.copy_(bias)


def half_of(layer: nn.Linear) -> nn.Linear:
    """A linear layer on the first half of the inputs."""
    half = nn.Linear(layer.in_features // 2, layer.out_features).to(layer.weight)
    half.weight.data.copy_(layer.weight[:, : half.in_features])
    half.bias.data.copy_(layer.bias)
    return half


class MambaMixer(nn.Module):
    """The Mamba branch of the mixer: a selective scan along the keypoints, and a branch without.

    The convolutions are centred and without bias. Unlike in Mamba, z does not gate the scan: both
    branches leave through the same projection.
    """

    state_dim = 16
    kernel_size = 5

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rank = math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.x_proj = nn.Linear(dim, self.rank + 2 * self.state_dim, bias=False)
        self.dt_proj = nn.Linear(self.rank, dim)
        self.A_log = nn.Parameter(torch.empty(dim, self.state_dim))
        self.D = nn.Parameter(torch.empty(dim))
        self.out_proj: nn.Module = nn.Linear(dim, dim, bias=False)
        self.conv1d_x = nn.Conv1d(dim, dim, self.kernel_size, groups=dim, bias=False)
        self.conv1d_z = nn.Conv1d(dim, dim, self.kernel_size, groups=dim, bias=False)

    def reset_parameters(self) -> None:
        """Initialise the state space as Mamba does: step sizes log-uniform in 0.001..0.1."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            step = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
            self.A_log.copy_(torch.arange(1, self.state_dim + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, states: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix (B, M, dim) states; padding, where valid (B, M) is false, affects no keypoint.

        Returns:
            (B, M, dim) output of the scan and (B, M, dim) output of the branch without scan.
        """
        if valid is not None:
            # Zero rows at the end look like the zero padding of the convolutions.
            states = states.masked_fill(~valid[..., None], 0)
        x, z = F.silu(self._convolve(self.in_proj(states))).chunk(2, dim=-1)
        delta, B, C = self.x_proj(x).split([self.rank, self.state_dim, self.state_dim], dim=-1)
        y = selective_scan(
            x,
            F.linear(delta, self.dt_proj.weight),
            -self.A_log.exp(),
            B,
            C,
            self.D,
            # The authors' code adds the bias in the projection and again in the scan.
            delta_bias=2 * self.dt_proj.bias,
        )
        return self.out_proj(y), self.out_proj(z)

    def _convolve(self, xz: Tensor) -> Tensor:
        """Convolve both branches, (B, M, 2 dim), along the keypoints.

        As a picture of height 1, (B, M, channels) is a channels-last tensor: no copy, and ten
        times faster on CPU than conv1d.
        """
        kernels = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight]).unsqueeze(2)
        picture = xz.transpose(1, 2).unsqueeze(2)
        padding = (0, self.kernel_size // 2)
        mixed = F.conv2d(picture, kernels, padding=padding, groups=len(kernels))
        return mixed.squeeze(2).transpose(1, 2)


class MambaAttentionMixer(nn.Module):
    """Self-attention and the Mamba branch side by side, joined with the state in one update."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj: nn.Module = nn.Linear(dim, dim)
        self.mamba_mixer: MambaMixer | None = MambaMixer(dim)
        self.ffn = FeedForward(4 * dim, dim)

    @property
    def is_branch_silent(self) -> bool:
        """True if nothing of what the Mamba branch says is heard, as in LightGlue."""
        if self.mamba_mixer is None:
            return True
        weight = self.ffn.first.weight
        return not bool(weight[:, weight.shape[1] // 2 :].any())

    def fuse(self) -> None:
        """Fold the projections of the messages into the layer that joins them.

        A silent branch is taken out: it need not be computed.
        """
        if self.mamba_mixer is None or self.is_branch_silent:
            self.mamba_mixer = None
            self.ffn[0] = half_of(self.ffn.first)
            fold_projections(self.ffn.first, [None, self.out_proj])
        else:
            of_mamba = self.mamba_mixer.out_proj
            fold_projections(self.ffn.first, [None, self.out_proj, of_mamba, of_mamba])
            self.mamba_mixer.out_proj = nn.Identity()
        self.out_proj = nn.Identity()

    def forward(self, states: Tensor, encoding: Tensor, valid: Tensor | None) -> Tensor:
        """Update (B, M, dim) states within one image; encoding (2, B, 1, M, head_dim)."""
        # The projection holds query, key and value of one channel next to each other.
        qkv = self.Wqkv(states).unflatten(-1, (self.num_heads, -1, 3))
        query, key, value = qkv.permute(4, 0, 2, 1, 3).contiguous()
        attention = attend(rotate(encoding, query), rotate(encoding, key), value, valid)
        messages = [self.out_proj(attention)]
        if self.mamba_mixer is not None:
            messages += self.mamba_mixer(states, valid)
        return states + self.ffn(torch.cat([states, *messages], dim=-1))


class CrossAttention(nn.Module):
    """Each image attends to the other; both use the same projection as query and as key."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out: nn.Module = nn.Linear(dim, dim)
        self.ffn = FeedForward(2 * dim, dim)

    def fuse(self) -> None:
        """Fold the projection of the message into the layer that joins it to the state."""
        fold_projections(self.ffn.first, [None, self.to_out])
        self.to_out = nn.Identity()

    def forward(
        self, states0: Tensor, states1: Tensor, valid0: Tensor | None, valid1: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update (B, M, dim) and (B, N, dim) states from each other."""
        qk0, qk1 = self._heads(self.to_qk(states0)), self._heads(self.to_qk(states1))
        value0, value1 = self._heads(self.to_v(states0)), self._heads(self.to_v(states1))
        message0 = self.to_out(attend(qk0, qk1, value1, valid1))
        message1 = self.to_out(attend(qk1, qk0, value0, valid0))
        states0 = states0 + self.ffn(torch.cat([states0, message0], dim=-1))
        states1 = states1 + self.ffn(torch.cat([states1, message1], dim=-1))
        return states0, states1

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MatchAssignment(nn.Module):
    """Match head: similarity and matchability to a log assignment (LightGlue, section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(
        self, states0: Tensor, states1: Tensor, valid0: Tensor | None, valid1: Tensor | None
    ) -> Tensor:
        """Return the (B, M + 1, N + 1) log assignment.

        Entry i, j is the log score of a match, the last column and row that of no match; the
        corner is 0. A match with padding has the score -inf.
        """
        projected0, projected1 = self.final_proj(states0), self.final_proj(states1)
        similarity = projected0 @ projected1.transpose(1, 2) / math.sqrt(states0.shape[-1])
        over0 = over1 = similarity
        if valid0 is not None:
            over0 = similarity.masked_fill(~valid0[:, :, None], -math.inf)
        if valid1 is not None:
            over1 = similarity.masked_fill(~valid1[:, None, :], -math.inf)
        logit0, logit1 = self.matchability(states0), self.matchability(states1)
        matched = F.logsigmoid(logit0) + F.logsigmoid(logit1).transpose(1, 2)
        log_assignment = F.pad(over0.log_softmax(1) + over1.log_softmax(2) + matched, (0, 1, 0, 1))
        log_assignment[:, :-1, -1] = F.logsigmoid(-logit0)[..., 0]
        log_assignment[:, -1, :-1] = F.logsigmoid(-logit1)[..., 0]
        return log_assignment

    def point_matchability(self, states: Tensor) -> Tensor:
        """Probability that each of (B, M, dim) points has a partner: (B, M)."""
        return self.matchability(states).sigmoid().squeeze(-1)


class TokenConfidence(nn.Module):
    """Deep confidence score regressor: has the best partner of a keypoint settled?

    The authors' code has no activation between the layers, so the three are one affine map.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim // 4), nn.Linear(dim // 4, 1)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Logits (B, M) of (B, M, dim) states, which get no gradient from here."""
        return self.token(states.detach()).squeeze(-1)


def filter_matches(
    log_assignment: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep mutual best partners whose score exceeds the threshold.

    Args:
        log_assignment: (B, M + 1, N + 1), M and N at least 1.
        threshold: smallest score of a match, exclusive.

    Returns:
        matches0 (B, M) and matches1 (B, N), -1 where there is none, then the scores of mutual
        partners for both, 0 where there is none.
    """
    best0 = log_assignment[:, :-1, :-1].max(dim=2)
    partner0, partner1 = best0.indices, log_assignment[:, :-1, :-1].argmax(dim=1)
    index0 = torch.arange(partner0.shape[1], device=partner0.device)
    index1 = torch.arange(partner1.shape[1], device=partner1.device)
    mutual0 = partner1.gather(1, partner0) == index0
    mutual1 = partner0.gather(1, partner1) == index1
    scores0 = best0.values.exp() * mutual0
    scores1 = scores0.gather(1, partner1) * mutual1
    matched0 = mutual0 & (scores0 > threshold)
    matched1 = mutual1 & matched0.gather(1, partner1)
    matches0 = partner0.masked_fill(~matched0, -1)
    matches1 = partner1.masked_fill(~matched1, -1)
    return matches0, matches1, scores0, scores1


@dataclass(frozen=True)
class Points:
    """The keypoints still in work of one image of b pairs, padded at the end.

    Attributes:
        states: (b, m, dim).
        encoding: (2, b, 1, m, head_dim), see `FourierPositionalEncoding`.
        index: (b, m) place of each in the given keypoints.
        valid: (b, m) bool, false at padding; None where nothing is padding, which spares masks.
    """

    states: Tensor
    encoding: Tensor
    index: Tensor
    valid: Tensor | None

    @property
    def mask(self) -> Tensor:
        """(b, m) bool, false at padding."""
        return torch.ones_like(self.index, dtype=torch.bool) if self.valid is None else self.valid

    def select(self, pairs: Tensor, kept: Tensor) -> Points:
        """Keep the pairs and of these the points chosen by (b,) and (b, m) masks, in order."""
        if pairs.all() and (kept == self.mask).all():
            return self
        kept = kept[pairs]
        chosen = Points(self.states[pairs], self.encoding[:, pairs], self.index[pairs], None)
        counts = kept.sum(dim=1)
        most = int(counts.max()) if len(counts) else 0
        valid = torch.arange(most, device=kept.device) < counts[:, None]
        order = kept.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return replace(chosen.reorder(order), valid=None if valid.all() else valid)

    def reorder(self, order: Tensor) -> Points:
        """Take the points at the (b, k) places `order`, which leave padding where it is."""
        states = self.states.gather(1, order[..., None].expand(-1, -1, self.states.shape[-1]))
        places = order[None, :, None, :, None].expand(2, -1, -1, -1, self.encoding.shape[-1])
        index = self.index.gather(1, order)
        return Points(states, self.encoding.gather(3, places), index, self.valid)


@dataclass(frozen=True)
class PairsInWork:
    """The pairs that have not ended yet.

    Attributes:
        pairs: (b,) which of the B pairs they are.
        points0: what is left of image 0.
        points1: what is left of image 1.
    """

    pairs: Tensor
    points0: Points
    points1: Points

    def select(
        self, chosen: Tensor, kept0: Tensor | None = None, kept1: Tensor | None = None
    ) -> PairsInWork:
        """Keep the pairs of the (b,) mask and, where given, only the points of (b, m) masks."""
        kept0 = self.points0.mask if kept0 is None else kept0
        kept1 = self.points1.mask if kept1 is None else kept1
        points0, points1 = self.points0.select(chosen, kept0), self.points1.select(chosen, kept1)
        return PairsInWork(self.pairs[chosen], points0, points1)

    def without_empty(self) -> PairsInWork:
        """Drop the pairs in which an image has no point left."""
        filled = self.points0.mask.any(dim=1) & self.points1.mask.any(dim=1)
        return self if filled.all() else self.select(filled)


class TransformerMambaLayer(nn.Module):
    """One layer: the mixer in each image, then cross-attention between them."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.mamba_selfattn_mixer = MambaAttentionMixer(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)

    def forward(self, points0: Points, points1: Points) -> tuple[Tensor, Tensor]:
        """Return the updated states of both images, (b, m, dim) and (b, n, dim)."""
        states0 = self.mamba_selfattn_mixer(points0.states, points0.encoding, points0.valid)
        states1 = self.mamba_selfattn_mixer(points1.states, points1.encoding, points1.valid)
        return self.cross_attn(states0, states1, points0.valid, points1.valid)


def confidence_thresholds(num_layers: int) -> Tensor:
    """Confidence that counts as confident after each layer, falling with depth (LightGlue)."""
    return (0.8 + 0.1 * torch.exp(-4.0 * torch.arange(num_layers) / num_layers)).clamp(0, 1)


class MambaGlue(nn.Module):
    """Matcher of local features.

    Example:
        >>> network = MambaGlue(MambaGlueConfig(features="aliked")).eval()
        >>> image0 = LocalFeatures(
        ...     torch.rand(1, 50, 2) * 640, torch.randn(1, 50, 128), torch.tensor([[640, 480]])
        ... )
        >>> with torch.inference_mode():
        ...     network(image0, image0).matches0.shape
        torch.Size([1, 50])
    """

    confidence_thresholds: Tensor

    def __init__(self, config: MambaGlueConfig | None = None) -> None:
        """Build the network with random weights; see `init_weights`."""
        super().__init__()
        self.config = config = config or MambaGlueConfig()
        dim, layers, front_end = config.dim, config.num_layers, config.front_end
        same_dim = front_end.descriptor_dim == dim
        self.input_proj = nn.Identity() if same_dim else nn.Linear(front_end.descriptor_dim, dim)
        position_dim = 4 if front_end.has_scale_and_orientation else 2
        self.posenc = FourierPositionalEncoding(position_dim, dim // config.num_heads)
        self.transformermambas = nn.ModuleList(
            TransformerMambaLayer(dim, config.num_heads) for _ in range(layers)
        )
        self.log_assignment = nn.ModuleList(MatchAssignment(dim) for _ in range(layers))
        self.token_confidence = nn.ModuleList(TokenConfidence(dim) for _ in range(layers - 1))
        self.register_buffer("confidence_thresholds", confidence_thresholds(layers))
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all weights anew from torch's global generator, for training from scratch."""
        # Inner modules first: the rule of a block replaces the default of the layers inside it.
        for module in reversed(list(self.modules())):
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    @property
    def has_silent_branch(self) -> bool:
        """True if the Mamba branch of no layer is heard: the network is LightGlue."""
        mixers = [m for m in self.modules() if isinstance(m, MambaAttentionMixer)]
        return all(mixer.is_branch_silent for mixer in mixers)

    def fuse(self) -> MambaGlue:
        """Fold what is linear into one layer, for inference; the function stays the same."""
        for module in list(self.modules()):
            if isinstance(module, MambaAttentionMixer | CrossAttention):
                module.fuse()
        return self

    @in_its_precision
    def forward(self, features0: LocalFeatures, features1: LocalFeatures) -> MambaGlueMatches:
        """Match B pairs of images.

        Raises:
            InputError: the features do not fit the network or each other.
        """
        work = self._encode(features0, features1)
        counts = features0.counts + features1.counts
        matches = self._no_matches(features0, features1)
        last = self.config.num_layers - 1
        for number in range(self.config.num_layers):
            matches.stop[work.pairs] = number + 1
            work = work.without_empty()
            if len(work.pairs) == 0:
                break
            work = self._run_layer(number, work)
            if number < last and self.config.depth_confidence > 0:
                work = self._stop_confident_pairs(number, work, counts, matches)
            if number < last and self.config.width_confidence > 0:
                work = self._prune(number, work, matches)
        self._write_matches(last, work, matches)
        return matches

    def forward_layers(
        self, features0: LocalFeatures, features1: LocalFeatures, *, only_last: bool = False
    ) -> LayerOutputs:
        """Run all layers on all keypoints and return what the training loss needs.

        Args:
            features0: of images 0.
            features1: of images 1.
            only_last: compute the assignment of the last layer alone, and no confidence.

        Raises:
            InputError: the features do not fit the network or each other, or an image has no
                keypoints.
        """
        work = self._encode(features0, features1)
        if not (features0.counts > 0).all() or not (features1.counts > 0).all():
            raise InputError("an image of the batch has no keypoints; leave its pair out")
        outputs = LayerOutputs([], [], [], features0.valid, features1.valid)
        valid0, valid1 = work.points0.valid, work.points1.valid
        for number in range(self.config.num_layers):
            work = self._run_layer(number, work)
            if only_last and number < self.config.num_layers - 1:
                continue
            states0, states1 = in_given_order(work.points0), in_given_order(work.points1)
            head = self.log_assignment[number]
            outputs.log_assignments.append(head(states0, states1, valid0, valid1))
            if number < self.config.num_layers - 1:
                outputs.confidence_logits0.append(self.token_confidence[number](states0))
                outputs.confidence_logits1.append(self.token_confidence[number](states1))
        return outputs

    def _encode(self, features0: LocalFeatures, features1: LocalFeatures) -> PairsInWork:
        """Project descriptors and encode positions, in the order in which they are scanned."""
        check_features(features0, self.config, "image 0")
        check_features(features1, self.config, "image 1")
        batch, batch1 = len(features0.keypoints), len(features1.keypoints)
        if batch != batch1:
            raise InputError(f"{batch} images 0 cannot be paired with {batch1} images 1")
        pairs = torch.arange(batch, device=features0.keypoints.device)
        points0, points1 = (
            # Masks cost time: none where all are keypoints.
            replace(points, valid=None) if points.mask.all() else points
            for points in (self.encode_points(features0), self.encode_points(features1))
        )
        return PairsInWork(pairs, points0, points1)

    def encode_points(self, features: LocalFeatures) -> Points:
        """The keypoints of one image before the first layer, in the order of the scan."""
        dtype = self.posenc.Wr.weight.dtype
        positions = normalize_keypoints(features)
        if self.config.front_end.has_scale_and_orientation:
            scales, oris = features.require("scales"), features.require("oris")
            positions = torch.cat([positions, scales[..., None], oris[..., None]], dim=-1)
        valid = features.valid
        # Whatever padding holds, even NaN, becomes harmless here.
        positions = positions.masked_fill(~valid[..., None], 0)
        descriptors = features.descriptors.masked_fill(~valid[..., None], 0)
        points = Points(
            states=self.input_proj(descriptors.to(dtype)),
            encoding=self.posenc(positions.to(dtype)),
            index=torch.arange(valid.shape[1], device=valid.device).expand_as(valid),
            valid=None if features.num_keypoints is None else valid,
        )
        if self.config.keypoint_order == "as_is":
            return points
        scores = features.require("scores").masked_fill(~valid, -math.inf)
        return points.reorder(scores.argsort(dim=1, descending=True, stable=True))

    def _run_layer(self, number: int, work: PairsInWork) -> PairsInWork:
        states0, states1 = self.transformermambas[number](work.points0, work.points1)
        points0 = replace(work.points0, states=states0)
        return replace(work, points0=points0, points1=replace(work.points1, states=states1))

    def _stop_confident_pairs(
        self, number: int, work: PairsInWork, counts: Tensor, matches: MambaGlueMatches
    ) -> PairsInWork:
        """Exit test (LightGlue, section 3.3): match the confident pairs, return the others.

        The share is of all (B,) `counts` keypoints: those pruned before count as confident.
        """
        threshold = self.confidence_thresholds[number]
        unconfident = torch.zeros_like(work.pairs)
        for points in (work.points0, work.points1):
            confidence = self.token_confidence[number](points.states).sigmoid()
            unconfident = unconfident + ((confidence < threshold) & points.mask).sum(dim=1)
        stopped = 1 - unconfident / counts[work.pairs] > self.config.depth_confidence
        self._write_matches(number, work.select(stopped), matches)
        return work.select(~stopped)

    def _prune(self, number: int, work: PairsInWork, matches: MambaGlueMatches) -> PairsInWork:
        """Drop the keypoints that look unmatchable, in images with enough of them."""
        kept = []
        for points, times_survived in (
            (work.points0, matches.prune0),
            (work.points1, matches.prune1),
        ):
            spared = points.mask.sum(dim=1, keepdim=True) <= self.config.pruning_min_keypoints
            survivors = points.mask & (spared | self._may_match(number, points.states))
            counted = survivors & ~spared
            pairs = work.pairs[:, None].expand_as(points.index)
            times_survived[pairs[counted], points.index[counted]] += 1
            kept.append(survivors)
        return work.select(torch.ones_like(work.pairs, dtype=torch.bool), *kept)

    def _may_match(self, number: int, states: Tensor) -> Tensor:
        """(b, m) bool: matchable, or too uncertain still to tell (only with the exit test)."""
        head = self.log_assignment[number]
        assert isinstance(head, MatchAssignment)
        matchability = head.point_matchability(states)
        may_match = matchability > 1 - self.config.width_confidence
        if self.config.depth_confidence > 0:
            confidence = self.token_confidence[number](states).sigmoid()
            may_match = may_match | (confidence <= self.confidence_thresholds[number])
        return may_match

    def _no_matches(self, features0: LocalFeatures, features1: LocalFeatures) -> MambaGlueMatches:
        """Results without any match, to be filled in."""
        valid0, valid1 = features0.valid, features1.valid
        dtype = torch.promote_types(self.posenc.Wr.weight.dtype, torch.float32)
        untouched = 1 if self.config.width_confidence > 0 else self.config.num_layers
        return MambaGlueMatches(
            matches0=torch.full_like(valid0, -1, dtype=torch.int64),
            matches1=torch.full_like(valid1, -1, dtype=torch.int64),
            matching_scores0=torch.zeros_like(valid0, dtype=dtype),
            matching_scores1=torch.zeros_like(valid1, dtype=dtype),
            stop=torch.zeros(len(valid0), dtype=torch.int64, device=valid0.device),
            prune0=valid0 * untouched,
            prune1=valid1 * untouched,
        )

    def _write_matches(self, number: int, work: PairsInWork, matches: MambaGlueMatches) -> None:
        """Match the pairs with the head of the layer they reached."""
        if len(work.pairs) == 0:
            return
        points0, points1 = work.points0, work.points1
        index0, index1 = points0.index, points1.index
        log_assignment = self.log_assignment[number](
            points0.states, points1.states, points0.valid, points1.valid
        )
        matches0, matches1, scores0, scores1 = filter_matches(
            log_assignment.to(matches.matching_scores0), self.config.filter_threshold
        )
        # Padding has no match, and its index is that of a pruned keypoint: it changes nothing.
        pairs = work.pairs[:, None]
        matches.matches0[pairs, index0] = translate(matches0, index1)
        matches.matches1[pairs, index1] = translate(matches1, index0)
        matches.matching_scores0[pairs, index0] = scores0
        matches.matching_scores1[pairs, index1] = scores1


def translate(matches: Tensor, index: Tensor) -> Tensor:
    """Replace (b, m) places among the points left, or -1, by places among the given keypoints."""
    return index.gather(1, matches.clamp(min=0)).masked_fill(matches < 0, -1)


def in_given_order(points: Points) -> Tensor:
    """(b, m, dim) states of all keypoints in the order in which they were given."""
    order = points.index.argsort(dim=1)
    return points.states.gather(1, order[..., None].expand_as(points.states))


def check_features(features: LocalFeatures, config: MambaGlueConfig, name: str) -> None:
    """Raise InputError where the features of an image do not fit the network."""
    shape = features.keypoints.shape
    if len(shape) != 3 or shape[2] != 2:
        raise InputError(f"keypoints of {name} have shape {tuple(shape)}, expected (B, M, 2)")
    batch, most = shape[:2]
    expected = {
        "descriptors": (batch, most, config.front_end.descriptor_dim),
        "image_size": (batch, 2),
        "scales": (batch, most),
        "oris": (batch, most),
        "scores": (batch, most),
        "num_keypoints": (batch,),
    }
    for field, wanted in expected.items():
        value = getattr(features, field)
        if value is not None and tuple(value.shape) != wanted:
            raise InputError(
                f"{field} of {name} have shape {tuple(value.shape)}, expected {wanted} "
                f"for {config.features} features"
            )
    if features.num_keypoints is not None and bool((features.num_keypoints > most).any()):
        raise InputError(f"num_keypoints of {name} exceeds the {most} keypoints given")
