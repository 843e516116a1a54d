"""ONNX files of the three matchers, run by onnxruntime, against the matchers themselves."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from short_matchers import (
    KEYPOINTS,
    SIZE,
    eloftr_matcher,
    jamma_matcher,
    mambaglue_matcher,
    matched,
    photographs,
    sift_like,
    translated,
)

from pipelines import export
from sfm_matchers.errors import MissingExtraError
from sfm_matchers.matchers.jamma import JamMaMatcher
from sfm_matchers.matchers.mambaglue import MambaGlueMatcher
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.networks.jamma import JamMa
from sfm_matchers.onnx.graphs import (
    EfficientLoFTRGraph,
    Graph,
    JamMaGraph,
    MambaGlueGraph,
    export_onnx,
)
from sfm_matchers.weights import load_network

pytestmark = pytest.mark.slow

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"


def run(
    graph: Graph,
    path: Path,
    inputs: Mapping[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch | None = None,
) -> list[np.ndarray]:
    """What onnxruntime makes of the inputs, by way of a file."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    if monkeypatch:  # merging nodes takes a third of the time
        quick = functools.partial(torch.onnx.export, optimize=False)
        monkeypatch.setattr(torch.onnx, "export", quick)
    assert export_onnx(graph, path, {"matcher": "test"}) < 10_000
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["matcher"] == "test"
    assert metadata["description"] == graph.description
    return session.run(None, dict(inputs))


def padded_inputs(features: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """The features of one image as the graph takes them; padding is NaN, to show where it leaks."""
    count = len(features["keypoints"])
    rows = {
        "keypoints": features["keypoints"],
        "descriptors": features["descriptors"].T,
        "scales": features["scales"],
        "oris": np.deg2rad(features["oris"]),
        "keypoint_scores": features["scores"],
    }
    inputs = {
        name: np.full((KEYPOINTS, *x.shape[1:]), np.nan, np.float32) for name, x in rows.items()
    }
    for name, x in rows.items():
        inputs[name][:count] = x
    inputs |= {"image_size": features["image_size"], "num_keypoints": np.array(count)}
    return {f"{name}{index}": x for name, x in inputs.items()}


def assert_same_matches(found: Sequence[Any], expected: Matches) -> None:
    """As many matches, each within a thousandth of a pixel of one of the expected ones."""
    table, wanted = (
        np.concatenate((np.asarray(points0), points1, np.asarray(scores)[:, None]), 1)
        for points0, points1, scores in (
            found,
            (expected.keypoints0, expected.keypoints1, expected.scores),
        )
    )
    assert len(table) == len(wanted) > 20
    nearest = np.abs(table[:, None] - wanted).max(2).argmin(1)
    assert len(set(nearest)) == len(wanted)
    np.testing.assert_allclose(table, wanted[nearest], rtol=0, atol=1e-3)


def test_jamma_in_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher, images = jamma_matcher(), photographs()
    inputs = {f"image{index}": image.numpy() for index, image in enumerate(images)}
    found = run(JamMaGraph(matcher, SIZE), tmp_path / "jamma.onnx", inputs, monkeypatch)
    assert_same_matches(found, matched(matcher, images))

    # The example of the documentation, on the same images as photos.
    monkeypatch.chdir(tmp_path)
    for name, image in zip(("a.jpg", "b.jpg"), images, strict=True):
        pixels = (255 * image[0].permute(1, 2, 0)).round().byte().numpy()
        # Under this name, but without the losses of JPEG.
        Path(name).write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    names: dict[str, Any] = {}
    exec(DOCUMENTATION.read_text().split("```python\n")[1].split("```")[0], names)
    assert_same_matches([names[key] for key in ("points0", "points1", "scores")], Matches(*found))


def test_eloftr_in_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher, images = eloftr_matcher(), translated()
    inputs = {f"image{index}": image.numpy() for index, image in enumerate(images)}
    found = run(EfficientLoFTRGraph(matcher, SIZE), tmp_path / "eloftr.onnx", inputs, monkeypatch)
    assert_same_matches(found, matched(matcher, images))


def test_mambaglue_in_onnxruntime(tmp_path: Path) -> None:
    matcher = mambaglue_matcher("score")
    features0, features1 = sift_like(KEYPOINTS - 10, seed=1), sift_like(KEYPOINTS, seed=2)
    inputs = padded_inputs(features0, 0) | padded_inputs(features1, 1)
    found = run(MambaGlueGraph(matcher, KEYPOINTS), tmp_path / "mambaglue.onnx", inputs)
    assert_same_assignment(found, matcher, features0, features1)


def assert_same_assignment(
    found: Sequence[Any],
    matcher: MambaGlueMatcher,
    features0: Mapping[str, np.ndarray],
    features1: Mapping[str, np.ndarray],
) -> None:
    matches0, scores0 = matcher.match(features0, features1)
    count = len(matches0)
    assert (matches0 >= 0).sum() > 20
    np.testing.assert_array_equal(found[0][:count], matches0)
    np.testing.assert_allclose(found[1][:count], scores0, rtol=0, atol=1e-4)
    assert (np.asarray(found[0])[count:] == -1).all()
    assert not np.asarray(found[1])[count:].any()


@torch.no_grad()
def test_the_graphs_equal_the_matchers() -> None:
    """In torch, where it is quick: what a conf or the data can change in a graph."""
    photos, images = photographs(), translated()
    matcher = jamma_matcher(pad_to_square=True)
    assert_same_matches(JamMaGraph(matcher, SIZE)(*photos), matched(matcher, photos))

    optimised = eloftr_matcher(skip_softmax=True)
    assert_same_matches(EfficientLoFTRGraph(optimised, SIZE)(*images), matched(optimised, images))

    glue = mambaglue_matcher("as_is")
    pair = sift_like(KEYPOINTS, seed=1), sift_like(KEYPOINTS - 7, seed=2)
    inputs = padded_inputs(pair[0], 0) | padded_inputs(pair[1], 1)
    graph = MambaGlueGraph(glue, KEYPOINTS)
    found = graph(*(torch.from_numpy(inputs[name]) for name in graph.example()))
    assert_same_assignment(found, glue, *pair)


@torch.no_grad()
def test_no_match_is_no_error() -> None:
    blank = [torch.zeros(1, 3, *SIZE[::-1])] * 2
    network = cast(JamMa, load_network("jamma", coarse_threshold=1.0))
    points0, points1, scores = JamMaGraph(JamMaMatcher(network), SIZE)(*blank)
    assert points0.shape == points1.shape == (0, 2)
    assert scores.shape == (0,)

    graph = MambaGlueGraph(mambaglue_matcher("score"), KEYPOINTS)
    inputs = padded_inputs(sift_like(0, 1), 0) | padded_inputs(sift_like(KEYPOINTS, 2), 1)
    matches0, scores0 = graph(*(torch.from_numpy(inputs[name]) for name in graph.example()))
    assert (matches0 == -1).all()
    assert not scores0.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--matcher", "jamma"], "give --size"),
        (["--matcher", "jamma", "--size", "640", "470"], "multiples of 16"),
        (["--matcher", "sift+mambaglue"], "give --num_keypoints"),
        (["--matcher", "sift+mambaglue", "--num_keypoints", "0"], "must be positive"),
        (["--matcher", "sift"], "nearest_neighbor"),
        (["--matcher", "jama", "--size", "64", "64"], "did you mean 'jamma'"),
    ],
)
def test_bad_options_are_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.onnx"
    assert export.main([*arguments, "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_missing_exporter_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "sfm_matchers.onnx.selective_scan", raising=False)
    with pytest.raises(MissingExtraError, match=r"sfm-matchers\[onnx\]"):
        export_onnx(JamMaGraph(jamma_matcher(), SIZE), tmp_path / "a.onnx")
