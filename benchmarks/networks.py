"""The three networks against their plain forms and against other libraries' matchers.

    python -m benchmarks.networks
    python -m benchmarks.networks --networks jamma eloftr --sizes 832x832 --threads 2

The plain form of a network is the definition: one step of the scan after the other, the whole
similarity matrix, RepVGG blocks with all their branches, whole fine maps, all windows at once,
norms and mixers as they are written in the papers. It must find the same matches. With
transformers or kornia installed their Efficient LoFTR, LoFTR and LightGlue run too, on the same
images (LightGlue on as many keypoints). All candidates of a row run in turns in one process; times
are medians of CPU seconds, so that other programs on the machine count little; on a GPU they are
wall seconds. Peak memory is measured in a process of its own per candidate, beyond what it holds
after the imports. Weights are bundled ones, in transformers too; of MambaGlue and in kornia random:
those find no matches, so that the fine stage of kornia's LoFTR has nothing to do.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sfm_matchers.machine.memory import peak_memory
from sfm_matchers.networks import coarse_matching, efficient_loftr, jamma, mamba, mambaglue, onednn
from sfm_matchers.networks.chosen_pixels import ALL_PIXELS
from sfm_matchers.networks.coarse_matching import CoarseMatches
from sfm_matchers.networks.precision import PRECISIONS
from sfm_matchers.networks.selective_scan import selective_scan
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render
from sfm_matchers.weights import load_network
from sfm_matchers.weights.convert_efficient_loftr import convert
from sfm_matchers.weights.loading import load_state_dict_file
from sfm_matchers.weights.registry import BUNDLED_DIR

STAGES = {
    "jamma": ("encode", "coarse_features", "match_coarse", "fine_maps", "refine"),
    "eloftr": ("encode", "transform", "match_coarse", "fine_maps", "refine"),
    "mambaglue": ("encode_points", "_run_layer", "_write_matches"),
}
Candidate = Callable[[], int]
Ids = tuple[Tensor, Tensor]


def main(
    networks: list[str], sizes: list[tuple[int, int]], counts: list[int], repeats: int, device: str
) -> None:
    """Print one block of rows per network and size."""
    print(f"{torch.get_num_threads()} threads, {device}, medians of {repeats}")
    for network in networks:
        for case in counts if network == "mambaglue" else sizes:
            _compare(network, case, repeats, device)


def _compare(network: str, case: Any, repeats: int, device: str) -> None:
    label = f"{case} keypoints" if network == "mambaglue" else f"{case[0]}x{case[1]}"
    names = [network, "plain", *_others(network)]
    candidates = {name: _candidate(network, name, case, device) for name in names}
    found = {name: run() for name, run in candidates.items()}  # also warms up
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, run in candidates.items():
            seconds[name].append(_time(run, device))
    flops = FlopCounterMode(display=False)
    with flops, _products_of_torch():  # it does not know oneDNN's
        candidates[network]()
    print(f"\n{network}, {label}: {flops.get_total_flops() / 1e9:.0f} GFLOP, {found}")
    ours = statistics.median(seconds[network])
    for name in names:
        median = statistics.median(seconds[name])
        memory = _peak_memory(network, name, label) if device == "cpu" else float("nan")
        print(
            f"  {name:22s} {1000 * median:8.0f} ms   "
            f"{network} needs {ours / median:.2f} of it   peak {memory:.2f} GB"
        )
    print("  stages of", network, _stages(network, case, device))


def _others(network: str) -> list[str]:
    libraries = {
        "jamma": [],
        "eloftr": [("transformers", "transformers"), ("kornia", "kornia LoFTR")],
        "mambaglue": [("kornia", "kornia LightGlue")],
    }[network]
    return [name for module, name in libraries if importlib.util.find_spec(module)]


def _candidate(network: str, name: str, case: Any, device: str) -> Candidate:
    """A function that matches one pair and returns the number of matches."""
    if name == "transformers":
        return _transformers(case, device)
    if name == "kornia LoFTR":
        return _kornia_loftr(case, device)
    if name == "kornia LightGlue":
        return _kornia_lightglue(case, device)
    fused = name != "plain"
    model = _build(network, fused).to(device)
    inputs = _inputs(network, case, device)

    def run() -> int:
        with torch.inference_mode(), contextlib.nullcontext() if fused else _plain():
            return _count(model(*inputs))

    return run


def _build(network: str, fused: bool) -> Any:
    torch.manual_seed(0)
    precision = settings["precision"] if fused else "float32"
    if network == "jamma":
        return load_network("jamma", precision=precision).eval()
    if network == "eloftr":
        # The plain form keeps the branches of its blocks.
        config = efficient_loftr.EfficientLoFTRConfig(precision=precision)
        model = efficient_loftr.EfficientLoFTR(config).eval()
        model.load_state_dict(load_state_dict_file(BUNDLED_DIR / "eloftr.safetensors"))
        return model.fuse() if fused else model
    # Neither early stop nor pruning: the whole network.
    config = mambaglue.MambaGlueConfig(
        depth_confidence=-1, width_confidence=-1, precision=precision
    )
    matcher = mambaglue.MambaGlue(config).eval()
    return matcher.fuse() if fused else matcher


VIEWS = 12  # on the path of the camera through the room
# Steps on that path between the two photos; precision of our networks, not of the plain forms.
settings: dict[str, Any] = {"apart": 1, "precision": "float32"}


@functools.lru_cache(maxsize=1)
def _photos(size: tuple[int, int]) -> Ids:
    """Two photos of a rendered room, (1, 3, H, W) in 0..1."""
    scene = make_scene(3, kind="room", texture_size=512)
    camera = Camera.from_field_of_view(*size)
    path = camera_path(scene, VIEWS, seed=1)
    poses = path[0], path[settings["apart"]]
    first, second = (
        torch.from_numpy(render(scene, camera, pose).image).permute(2, 0, 1)[None] / 255
        for pose in poses
    )
    return first, second


def _images(size: tuple[int, int], channels: int, device: str) -> Ids:
    first, second = (photo.to(device) for photo in _photos(size))
    if channels == 1:
        return first.mean(1, keepdim=True), second.mean(1, keepdim=True)
    return first, second


def _inputs(network: str, case: Any, device: str) -> tuple[Any, Any]:
    if network == "eloftr":
        return _images(case, 1, device)
    if network == "jamma":
        mean, deviation = (
            torch.tensor(x, device=device)[:, None, None]
            for x in (jamma.IMAGE_MEAN, jamma.IMAGE_STD)
        )
        first, second = _images(case, 3, device)
        return (first - mean) / deviation, (second - mean) / deviation
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([[640.0, 480.0]], device=device)
    features = [
        mambaglue.LocalFeatures(
            keypoints=torch.rand(1, case, 2, generator=generator).to(device) * size[:, None],
            descriptors=torch.randn(1, case, 256, generator=generator).to(device),
            image_size=size,
        )
        for _ in range(2)
    ]
    return features[0], features[1]


def _count(output: Any) -> int:
    if hasattr(output, "scores"):
        return len(output.scores)
    return int((output.matches0 >= 0).sum())


# The definitions ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    with (
        mock.patch.dict(os.environ, {"SFM_MATCHERS_SCAN": "reference"}),
        mock.patch.object(jamma, "match_either_maximum", _match_either_plainly),
        mock.patch.object(jamma, "window_pixels", return_value=ALL_PIXELS),
        mock.patch.object(efficient_loftr, "window_pixels", return_value=ALL_PIXELS),
        mock.patch.object(jamma, "WINDOW_CHUNK", sys.maxsize),
        mock.patch.object(jamma.MixerLayer, "forward", _mix_plainly),
        mock.patch.object(jamma.ConvNeXtBlock, "_perceptron", _perceptron_plainly),
        mock.patch.object(efficient_loftr, "match_mutual_maximum", _match_mutual_plainly),
        _products_of_torch(),
    ):
        yield


def _products_of_torch() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(onednn, "is_faster", return_value=False)


def _mix_plainly(layer: jamma.MixerLayer, x: Tensor) -> Tensor:
    x = x + layer.mlp1(x.transpose(1, 2)).transpose(1, 2)
    return x + layer.mlp2(x)


def _perceptron_plainly(block: jamma.ConvNeXtBlock, x: Tensor) -> Tensor:
    x, norm = torch.nn.functional.gelu(block.pwconv1(x)), block.grn
    energy = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    response = energy / (energy.mean(-1, keepdim=True) + 1e-6)
    return block.pwconv2(norm.gamma * (x * response) + norm.beta + x)


def _match_either_plainly(
    features0: Tensor, features1: Tensor, grid0: Ids, grid1: Ids, **options: Any
) -> CoarseMatches:
    logits = coarse_matching.similarity(features0, features1, options["temperature"])
    along1, along0 = logits.softmax(2), logits.softmax(1)
    chosen = (along1 == along1.amax(2, keepdim=True)) & (along1 > options["threshold"])
    chosen |= (along0 == along0.amax(1, keepdim=True)) & (along0 > options["threshold"])
    chosen &= _inner(grid0, options["border"])[:, None] & _inner(grid1, options["border"])
    ids = chosen.nonzero(as_tuple=True)
    return CoarseMatches(*ids, logits[ids], torch.maximum(along0, along1)[ids])


def _match_mutual_plainly(
    features0: Tensor, features1: Tensor, grid0: Ids, grid1: Ids, **options: Any
) -> CoarseMatches:
    logits = coarse_matching.similarity(features0, features1, options["temperature"])
    scores = logits.softmax(2) * logits.softmax(1)
    chosen = (scores == scores.amax(2, keepdim=True)) & (scores == scores.amax(1, keepdim=True))
    chosen &= _inner(grid0, options["border"])[:, None] & _inner(grid1, options["border"])
    chosen &= scores > options["threshold"]
    ids = chosen.nonzero(as_tuple=True)
    return CoarseMatches(*ids, logits[ids], scores[ids])


def _inner(grid: Any, border: int) -> Tensor:
    inner = torch.zeros(grid, dtype=torch.bool)
    inner[border:-border, border:-border] = True
    return inner.flatten()


# Other libraries ----------------------------------------------------------------------------------


def _transformers(size: tuple[int, int], device: str) -> Candidate:
    from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

    config = EfficientLoFTRConfig(attn_implementation="eager")
    model = EfficientLoFTRForKeypointMatching(config).eval()
    weights = load_state_dict_file(BUNDLED_DIR / "eloftr.safetensors")
    names = {key: next(iter(convert({key: value}))) for key, value in model.state_dict().items()}
    model.load_state_dict({key: weights[name] for key, name in names.items()})
    model = model.to(device)
    images = torch.stack(_images(size, 1, device), dim=1).expand(-1, -1, 3, -1, -1)

    def run() -> int:
        with torch.inference_mode():
            return int((model(images).matches >= 0).sum())

    return run


def _kornia_loftr(size: tuple[int, int], device: str) -> Candidate:
    from kornia.feature import LoFTR

    torch.manual_seed(0)
    model = LoFTR(pretrained=None).eval().to(device)
    first, second = _images(size, 1, device)

    def run() -> int:
        with torch.inference_mode():
            return len(model({"image0": first, "image1": second})["keypoints0"])

    return run


def _kornia_lightglue(count: int, device: str) -> Candidate:
    from kornia.feature import LightGlue

    torch.manual_seed(0)
    with mock.patch("torch.hub.load_state_dict_from_url", return_value={}):
        model = LightGlue(None, input_dim=256, depth_confidence=-1, width_confidence=-1)
    model = model.eval().to(device)
    features = _inputs("mambaglue", count, device)
    data = {
        f"image{index}": {
            "keypoints": of_image.keypoints,
            "descriptors": of_image.descriptors,
            "image_size": of_image.image_size,
        }
        for index, of_image in enumerate(features)
    }

    def run() -> int:
        with torch.inference_mode():
            return int((model(data)["matches0"] >= 0).sum())

    return run


# Measuring ----------------------------------------------------------------------------------------


def _time(run: Candidate, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    _synchronize(device)
    start = clock()
    run()
    _synchronize(device)
    return clock() - start


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _stages(network: str, case: Any, device: str) -> str:
    """The stages' times, each method's calls added up; medians of three pairs."""
    model, inputs = _build(network, fused=True).to(device), _inputs(network, case, device)
    totals: dict[str, float] = {}

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            result = None

            def run() -> int:
                nonlocal result
                result = method(*arguments, **options)
                return 0

            totals[name] = totals.get(name, 0.0) + _time(run, device)
            return result

        return call

    for name in STAGES[network]:
        setattr(model, name, timed(name.strip("_"), getattr(model, name)))
    rounds = []
    scan = timed("scan", selective_scan)
    with (
        torch.inference_mode(),
        mock.patch.object(mamba, "selective_scan", scan),
        mock.patch.object(mambaglue, "selective_scan", scan),
    ):
        for _ in range(3):
            totals.clear()
            whole = _time(lambda: _count(model(*inputs)), device)
            rounds.append({**totals, "whole": whole})
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    parts = {name: f"{name} {1000 * value:.1f} ms" for name, value in medians.items()}
    if "scan" in parts:
        parts["scan"] += f" ({medians['scan'] / medians['whole']:.1%} of the whole)"
    return ", ".join(parts.values())


def _peak_memory(network: str, name: str, label: str) -> float:
    command = [sys.executable, "-m", "benchmarks.networks", "--memory_of", network, name, label]
    command += ["--threads", str(torch.get_num_threads())]
    command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _print_memory(network: str, name: str, label: str) -> None:
    case: Any = int(label.split()[0]) if network == "mambaglue" else _size(label)
    if name in ("transformers", "kornia LoFTR", "kornia LightGlue"):
        importlib.import_module(name.split()[0])
    _inputs(network, case, "cpu")
    before = peak_memory()
    _candidate(network, name, case, "cpu")()
    print(peak_memory() - before)


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[(640, 480), (832, 832)], metavar="WIDTHxHEIGHT"
    )
    parser.add_argument("--keypoints", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--apart",
        type=int,
        default=1,
        choices=range(1, VIEWS),
        metavar="N",
        help="steps between the two photos; 1: almost every cell has a match (default: 1)",
    )
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of ours")
    parser.add_argument("--memory_of", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings |= {"apart": given.apart, "precision": given.precision}
    if given.memory_of:
        _print_memory(*given.memory_of)
    else:
        main(given.networks, given.sizes, given.keypoints, given.repeats, given.device)
