"""torch.compile: whole graphs, equal results, and one line where there is no compiler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from short_matchers import (
    eloftr_matcher,
    jamma_matcher,
    mambaglue_matcher,
    matched,
    photographs,
    sift_like,
    translated,
)

from sfm_matchers.errors import InputError
from sfm_matchers.matchers.compiling import compile_matcher
from sfm_matchers.matchers.nearest_neighbor import NearestNeighborMatcher
from sfm_matchers.matchers.photo_matchers import load_matcher
from sfm_matchers.matchers.protocols import DetectorFreeMatcher, Matches, SparseMatcher
from sfm_matchers.networks.efficient_loftr import EfficientLoFTRFeatures
from sfm_matchers.networks.selective_scan import scan_operator

pytestmark = pytest.mark.slow


def compile_for_test(matcher: SparseMatcher | DetectorFreeMatcher) -> None:
    """Trace only: a test machine may have no compiler."""
    torch._dynamo.reset()
    compile_matcher(matcher, backend="eager")
    torch._dynamo.utils.counters.clear()


def assert_whole_graphs(most: int) -> None:
    """Graphs were made, so many at most, and nothing broke one in two."""
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert 0 < counters["stats"]["unique_graphs"] <= most


def test_jamma_compiles_without_graph_breaks() -> None:
    matcher, images = jamma_matcher(), photographs()
    expected = matched(matcher, images)
    compile_for_test(matcher)
    assert_equal(matched(matcher, images), expected)
    assert_whole_graphs(5)


def test_eloftr_compiles_without_graph_breaks() -> None:
    matcher, images = eloftr_matcher(), translated()
    expected = matched(matcher, images)
    compile_for_test(matcher)
    assert_equal(matched(matcher, images), expected)
    assert_whole_graphs(3)


def test_fine_maps_compile_without_graph_breaks() -> None:
    """As on a GPU, where all of their pixels are computed."""
    coarse, half = torch.randn(1, 256, 4, 8), torch.randn(1, 64, 16, 32)
    features = EfficientLoFTRFeatures(half, torch.randn(1, 128, 8, 16), coarse)
    fusion = eloftr_matcher().network.fine_preprocess
    upsampling = jamma_matcher().network.matcher.up2
    with torch.inference_mode():
        for module, inputs in ((fusion, (features, coarse)), (upsampling, (coarse,))):
            compiled = torch.compile(module, backend="eager", fullgraph=True)
            torch.testing.assert_close(compiled(*inputs), module(*inputs))


def assert_equal(found: Matches, expected: Matches) -> None:
    assert len(expected) > 20
    np.testing.assert_allclose(found.keypoints0, expected.keypoints0, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.keypoints1, expected.keypoints1, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-4)


def test_mambaglue_compiles_without_graph_breaks() -> None:
    matcher = mambaglue_matcher("score")
    pairs = [(sift_like(64, 1), sift_like(40, 2)), (sift_like(50, 1), sift_like(33, 2))]
    expected = [matcher.match(*pair) for pair in pairs]
    compile_for_test(matcher)
    for pair, (matches0, scores0) in zip(pairs, expected, strict=True):
        found = matcher.match(*pair)
        np.testing.assert_array_equal(found[0], matches0)
        np.testing.assert_allclose(found[1], scores0, rtol=0, atol=1e-4)
    # Numbers of keypoints share a graph, and so do layers but the first.
    assert_whole_graphs(2)


def test_the_scan_is_a_sound_operator() -> None:
    sequences, length, channels, states = 2, 5, 3, 4
    tensors = [
        torch.rand(sequences, length, channels),
        torch.rand(sequences, length, channels),
        -torch.rand(sequences, channels, states),
        torch.rand(sequences, length, states),
        torch.rand(sequences, length, states),
        torch.rand(sequences, channels),
    ]
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(scan_operator, (*tensors, None, None, "torch"), test_utils=checks)
    gate, bias = torch.rand_like(tensors[0]), torch.rand_like(tensors[5])
    torch.library.opcheck(scan_operator, (*tensors, gate, bias, "reference"), test_utils=checks)


def test_a_matcher_without_a_network_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to compile"):
        load_matcher("sift", compile=True)
    with pytest.raises(InputError, match="nothing to compile"):
        compile_matcher(NearestNeighborMatcher())


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: object) -> None:
        raise RuntimeError("no working C++ compiler found\nmore lines")

    with pytest.raises(InputError, match=r"leave compile away .*: .*no working C\+\+") as error:
        compile_matcher(mambaglue_matcher("score"), backend=broken)
    assert "\n" not in str(error.value)
