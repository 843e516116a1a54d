"""The matchers as ONNX files of a fixed size, from images or features to matches.

`JamMaGraph`, `EfficientLoFTRGraph` and `MambaGlueGraph` run the networks without what a graph
cannot hold: blocks of a length that depends on the data, early exit and pruning. Coarse matching
therefore forms the whole similarity matrix here, where the networks walk through it in blocks.

docs/onnx.md describes the inputs and outputs for the users of the files.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfm_matchers.confs import DetectorFreeConf, load_conf
from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.files.replacing import replacing
from sfm_matchers.matchers.efficient_loftr import EfficientLoFTRMatcher
from sfm_matchers.matchers.jamma import JamMaMatcher
from sfm_matchers.matchers.mambaglue import MambaGlueMatcher
from sfm_matchers.matchers.registry import load_detector_free_matcher, load_sparse_matcher
from sfm_matchers.networks import efficient_loftr, jamma
from sfm_matchers.networks.coarse_matching import CoarseMatches, inside_border
from sfm_matchers.networks.mambaglue import LocalFeatures, Points, filter_matches, translate
from sfm_matchers.networks.table import NETWORKS, resolve

logger = logging.getLogger(__name__)

OPSET = 18
INSTALL = "pip install 'sfm-matchers[onnx]'"

IMAGES = (
    "image0, image1: (1, {channels}, {height}, {width}) float32, {colours} in 0..1. Outputs: "
    "keypoints0, keypoints1 (M, 2), x and y in pixels of these images, (0, 0) being the centre of "
    "the top-left pixel, and scores (M,). In a photo of w x h pixels that was resized to the "
    "images' size they are (x + 0.5) * w / {width} - 0.5 and (y + 0.5) * h / {height} - 0.5."
)
FEATURES = (
    "For each image, 0 and 1: {inputs}. keypoints are x and y in pixels of the photo, image_size "
    "its width and height{units}; rows from num_keypoints on are padding. Outputs: matches0 (N,) "
    "int64, the index in image 1 or -1, and scores0 (N,), 0 where unmatched."
)
UNITS = ", scales are in pixels of the image that the detector has seen, oris in radians"


class _ImagePairGraph(nn.Module):
    """Two images of one size in, matches out.

    Args:
        size: width and height of the images in pixels.
    """

    output_names = ("keypoints0", "keypoints1", "scores")
    channels: ClassVar[int]
    colours: ClassVar[str]
    size_multiple: ClassVar[int]

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        if min(size) <= 0 or any(side % self.size_multiple for side in size):
            raise InputError(
                f"a size of {size[0]} x {size[1]} pixels cannot be used: both sides must be "
                f"multiples of {self.size_multiple}"
            )
        self.size = size

    def example(self) -> dict[str, Tensor]:
        """Inputs of the right shapes, by name."""
        width, height = self.size
        return {f"image{index}": torch.rand(1, self.channels, height, width) for index in (0, 1)}

    @property
    def description(self) -> str:
        """What goes in and what comes out."""
        width, height = self.size
        return IMAGES.format(
            channels=self.channels, width=width, height=height, colours=self.colours
        )


class JamMaGraph(_ImagePairGraph):
    """JamMa on two images of one size.

    Args:
        matcher: holds the network, and whether it wants images padded to squares.
        size: width and height of the images in pixels.
    """

    channels = 3
    colours = "RGB"
    size_multiple = jamma.SIZE_MULTIPLE

    def __init__(self, matcher: JamMaMatcher, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.matcher, self.network = matcher, matcher.network

    def forward(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Match two images (1, 3, H, W): points (M, 2) in each and scores (M,), in no order."""
        network, config = self.network, self.network.config
        (features0, grid), (features1, _) = (
            self.matcher.encode_pixels(image).features for image in (image0, image1)
        )
        canvas = (features0.eighth.shape[2], features0.eighth.shape[3])
        mask = None if grid == canvas else self.matcher.masks(1, grid, canvas)
        coarse0, coarse1 = network.coarse_features(features0, features1)
        similarity = network.coarse_similarity(coarse0, coarse1, mask, mask)[0]
        ids0, ids1 = _either_maximum(similarity, config.coarse_threshold)
        ids = torch.stack((torch.zeros_like(ids0), ids0, ids1))
        ids = ids[:, inside_border(ids, canvas, canvas, config.border, mask, mask)]

        fine0, fine1 = network.fine_maps(features0, features1, coarse0, coarse1)
        batch_ids, ids0, ids1 = _with_one_more(ids)
        values = similarity[ids0, ids1]
        matches = CoarseMatches(batch_ids, ids0, ids1, values, values)
        all_ids = torch.arange(ids0.shape[0])
        coarse_ids, points0, points1, scores = network.refine(fine0, fine1, matches, all_ids)
        asked = coarse_ids < ids.shape[1]
        return points0[asked], points1[asked], scores[asked]


class EfficientLoFTRGraph(_ImagePairGraph):
    """Efficient LoFTR on two images of one size; image 0 is refined to sub-pixels.

    Args:
        matcher: holds the network.
        size: width and height of the images in pixels.
    """

    channels = 1
    colours = "gray"
    size_multiple = efficient_loftr.SIZE_MULTIPLE

    def __init__(self, matcher: EfficientLoFTRMatcher, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.network = matcher.network

    def forward(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Match two images (1, 1, H, W): points (M, 2) in each and scores (M,)."""
        network, config = self.network, self.network.config
        # The network refines its second image.
        features1, features0 = network.encode(image1), network.encode(image0)
        coarse1, coarse0 = network.transform(features1, features0)
        grid = (coarse0.shape[2], coarse0.shape[3])
        similarity = network.coarse_logits(coarse1, coarse0)[0]
        ids1, ids0, scores = _mutual_maximum(
            similarity, config.match_threshold, softmax=not config.skip_softmax
        )
        ids = torch.stack((torch.zeros_like(ids1), ids1, ids0))
        inside = inside_border(ids, grid, grid, config.border, None, None)
        (batch_ids, ids1, ids0), scores = _with_one_more(ids[:, inside]), scores[inside]

        fine1, fine0 = network.fine_maps(features1, features0, coarse1, coarse0)
        offsets1, offsets0 = network.refine_windows(fine1, fine0, batch_ids, ids1, ids0)
        points0 = efficient_loftr.cell_position(ids0, grid[1]) + offsets0
        points1 = efficient_loftr.cell_position(ids1, grid[1]) + offsets1
        return points0[:-1], points1[:-1], scores


class MambaGlueGraph(nn.Module):
    """MambaGlue on two sets of so many keypoints, all layers on all of them.

    Args:
        matcher: holds the network.
        num_keypoints: N, rows of each input; fewer keypoints are padded.
    """

    output_names = ("matches0", "scores0")

    def __init__(self, matcher: MambaGlueMatcher, num_keypoints: int) -> None:
        super().__init__()
        if num_keypoints < 1:
            raise InputError(f"--num_keypoints must be positive, not {num_keypoints}")
        self.num_keypoints = num_keypoints
        self.network = matcher.network
        config = matcher.network.config
        if config.depth_confidence > 0 or config.width_confidence > 0:
            logger.warning("a graph neither stops early nor prunes: all layers, all keypoints")

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """What the graph takes of one image."""
        config, count = self.network.config, self.num_keypoints
        shapes: dict[str, tuple[int, ...]] = {
            "keypoints": (count, 2),
            "descriptors": (count, config.front_end.descriptor_dim),
            "image_size": (2,),
            "num_keypoints": (),
        }
        if config.front_end.has_scale_and_orientation:
            shapes |= {"scales": (count,), "oris": (count,)}
        if config.keypoint_order == "score":
            shapes["keypoint_scores"] = (count,)
        return shapes

    def example(self) -> dict[str, Tensor]:
        """Inputs of the right shapes, by name."""
        inputs = {
            f"{name}{index}": torch.rand(shape)
            for index in (0, 1)
            for name, shape in self._shapes.items()
        }
        for index in (0, 1):  # a tensor each: the exporter takes one that comes twice for one input
            inputs[f"num_keypoints{index}"] = torch.tensor(self.num_keypoints)
        return inputs

    @property
    def description(self) -> str:
        """What goes in and what comes out."""
        inputs = ", ".join(f"{name} {shape}" for name, shape in self._shapes.items())
        has_scale = self.network.config.front_end.has_scale_and_orientation
        return FEATURES.format(inputs=inputs, units=UNITS if has_scale else "")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Match the tensors of `example`; returns matches0 (N,) and scores0 (N,)."""
        network, half = self.network, len(inputs) // 2
        points0, points1 = self._points(inputs[:half]), self._points(inputs[half:])
        for layer in network.transformermambas:
            states0, states1 = layer(points0, points1)
            points0 = replace(points0, states=states0)
            points1 = replace(points1, states=states1)
        log_assignment = network.log_assignment[-1](
            points0.states, points1.states, points0.valid, points1.valid
        )
        matches0, _, scores0, _ = filter_matches(log_assignment, network.config.filter_threshold)
        scores0 = scores0.masked_fill(matches0 < 0, 0)
        matches0 = translate(matches0, points1.index)
        given = points0.index.argsort(dim=1)
        return matches0.gather(1, given)[0], scores0.gather(1, given)[0]

    def _points(self, inputs: Sequence[Tensor]) -> Points:
        named = {name: x[None] for name, x in zip(self._shapes, inputs, strict=True)}
        scores = named.pop("keypoint_scores", None)
        return self.network.encode_points(LocalFeatures(**named, scores=scores))


Graph = JamMaGraph | EfficientLoFTRGraph | MambaGlueGraph


def _either_maximum(similarity: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The rule of `match_either_maximum` on the whole S (L0, L1).

    Returns:
        Cells of image 0 and of image 1, (M,) int64, in no order.
    """
    best1, best0 = similarity.argmax(1), similarity.argmax(0)
    rows = (similarity.amax(1) - _log_sum(similarity, 1)[:, 0]).exp() > threshold
    columns = (similarity.amax(0) - _log_sum(similarity, 0)[0]).exp() > threshold
    # What a row has chosen already is not chosen by its column again.
    columns = columns & ~(rows[best0] & (best1[best0] == torch.arange(best0.shape[0])))
    ids0, ids1 = rows.nonzero()[:, 0], columns.nonzero()[:, 0]
    return torch.cat((ids0, best0[ids1])), torch.cat((best1[ids0], ids1))


def _mutual_maximum(
    similarity: Tensor, threshold: float, softmax: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The rule of `match_mutual_maximum` on the whole S (L0, L1).

    Returns:
        Cells of image 0 and of image 1, (M,) int64, and scores (M,).
    """
    if softmax:
        similarity = 2 * similarity - _log_sum(similarity, 1) - _log_sum(similarity, 0)
    largest, best1 = similarity.max(1)
    scores = largest.exp() if softmax else largest
    mutual = similarity.argmax(0)[best1] == torch.arange(best1.shape[0])
    ids0 = (mutual & (scores > threshold)).nonzero()[:, 0]
    return ids0, best1[ids0], scores[ids0]


def _log_sum(x: Tensor, axis: int) -> Tensor:
    """Log of the sum of exponentials along an axis, which stays with length 1.

    In steps: onnxruntime's ReduceLogSumExp takes several times as long.
    """
    largest = x.amax(axis, keepdim=True)
    return largest + (x - largest).exp().sum(axis, keepdim=True).log()


def _with_one_more(ids: Tensor) -> Tensor:
    """Append a match of cells 0 to ids (3, M), for the caller to take away once it is refined.

    onnxruntime fails in some products of no rows.
    """
    return nn.functional.pad(ids, (0, 1))


def load_graph(
    matcher: str,
    weights: str = "bundled",
    size: tuple[int, int] | None = None,
    num_keypoints: int | None = None,
) -> Graph:
    """Load the matcher of a conf in the form that can be exported.

    Args:
        matcher: name of a conf, or a conf file.
        weights: as for `load_matcher`.
        size: width and height in pixels, for a detector-free matcher.
        num_keypoints: for MambaGlue.

    Raises:
        InputError: unknown conf, or one whose matcher cannot be exported; a size is missing or bad.
        WeightsError: the weights cannot be loaded.
    """
    conf = load_conf(matcher)
    entry = NETWORKS.get(conf.matcher)
    if entry is None or not entry.graph:
        raise InputError(f"{matcher}: {conf.matcher} is no network of this package")
    if conf.options.get("precision", "float32") != "float32":
        raise InputError(f"{matcher}: only float32 can be exported, leave precision away")
    conf = replace(conf, model={**conf.model, "precision": "float32"})  # on every CPU
    if isinstance(conf, DetectorFreeConf):
        if size is None:
            raise InputError(f"{matcher} matches images: give --size WIDTH HEIGHT")
        detector_free = load_detector_free_matcher(conf, weights, "cpu")
        graph: Graph = resolve(entry.graph)(detector_free, size)
        return graph
    if num_keypoints is None:
        raise InputError(f"{matcher} matches features: give --num_keypoints N")
    sparse = load_sparse_matcher(conf, weights, "cpu")
    graph = resolve(entry.graph)(sparse, num_keypoints)
    return graph


def export_onnx(graph: Graph, path: Path, metadata: Mapping[str, str] | None = None) -> int:
    """Write a matcher as an ONNX file, weights included.

    Args:
        graph: see `load_graph`.
        path: of the file.
        metadata: kept in the file, beside a description of inputs and outputs.

    Returns:
        Number of nodes of the graph.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        from sfm_matchers.onnx.selective_scan import TRANSLATIONS
    except ImportError as error:
        raise MissingExtraError(f"ONNX export needs onnx and onnxscript: {INSTALL}") from error
    example = graph.example()
    inputs = tuple(example.values())
    with torch.no_grad(), _quiet():
        # First as it is: tables that the networks keep must not be made of the exporter's tensors.
        graph.eval()(*inputs)
        program = torch.onnx.export(
            torch.export.export(graph, inputs, strict=False),
            dynamo=True,
            input_names=list(example),
            output_names=list(graph.output_names),
            opset_version=OPSET,
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update({"description": graph.description, **(metadata or {})})
    with replacing(path) as temporary:
        program.save(str(temporary), external_data=False)
    return sum(1 for _ in program.model.graph.all_nodes())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says about its own work."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
