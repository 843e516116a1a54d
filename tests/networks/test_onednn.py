"""oneDNN's products take the place of torch's, and are the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from short_matchers import eloftr_matcher, jamma_matcher, matched, photographs, translated
from torch import Tensor

from sfm_matchers.networks import onednn

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="torch has no oneDNN here",
)


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "WORTHWHILE", 1)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A list that grows by the shape of each product of oneDNN's."""
    shapes: list[tuple[int, ...]] = []
    multiply = onednn._multiply

    def count(*operands: Any) -> Tensor:
        shapes.append(tuple(operands[0].shape))
        return multiply(*operands)

    monkeypatch.setattr(onednn, "_multiply", count)
    return shapes


def operand(*shape: int, strided: bool = False) -> Tensor:
    """Random numbers, that lie apart if `strided`."""
    if strided:
        return torch.randn(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]
    return torch.randn(shape)


PRODUCTS: dict[str, Callable[[int, int, int, bool], Tensor]] = {
    "linear": lambda m, k, n, s: F.linear(operand(2, m, k, strided=s), operand(n, k), operand(n)),
    "linear of a vector": lambda m, k, n, s: F.linear(operand(k, strided=s), operand(n, k)),
    "linear, weight of a larger one": lambda m, k, n, s: F.linear(
        operand(m, k), operand(n, k, strided=s)
    ),
    "matrices": lambda m, k, n, s: operand(m, k, strided=s) @ operand(k, n),
    "transposed": lambda m, k, n, s: torch.matmul(operand(k, m, strided=s).T, operand(n, k).T),
    "few pairs": lambda m, k, n, s: operand(3, m, k, strided=s) @ operand(3, n, k).mT,
    "many pairs": lambda m, k, n, s: operand(9, m, k, strided=s) @ operand(9, k, n),
    "no pairs": lambda m, k, n, s: operand(0, m, k) @ operand(0, k, n),
    "broadcast": lambda m, k, n, s: operand(2, m, k, strided=s) @ operand(k, n),
    "by a vector": lambda m, k, n, s: operand(m, k, strided=s) @ operand(k),
    "into a tensor": lambda m, k, n, s: torch.matmul(
        operand(2, m, k, strided=s), operand(2, k, n), out=torch.empty(2, m, n)
    ),
    "with a row added": lambda m, k, n, s: torch.addmm(
        operand(n), operand(m, k, strided=s), operand(k, n)
    ),
    "with a matrix added": lambda m, k, n, s: torch.addmm(
        operand(m, n), operand(m, k, strided=s), operand(k, n)
    ),
    "pairs with a row added": lambda m, k, n, s: torch.baddbmm(
        operand(1, n), operand(2, m, k, strided=s), operand(2, k, n)
    ),
    "attention": lambda m, k, n, s: F.scaled_dot_product_attention(
        operand(1, 2, m, k, strided=s), operand(1, 2, n, k, strided=s), operand(1, 2, n, k)
    ),
    "attention with a mask": lambda m, k, n, s: F.scaled_dot_product_attention(
        operand(1, 2, m, k),
        operand(1, 2, n, k),
        operand(1, 2, n, k),
        attn_mask=torch.ones(m, n) > 0,
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    product=st.sampled_from(sorted(PRODUCTS)),
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    strided=st.booleans(),
)
@torch.inference_mode()
def test_products_are_those_of_torch(
    product: str, sizes: tuple[int, int, int], strided: bool
) -> None:
    results = []
    for context in (nullcontext(), onednn.products()):
        torch.manual_seed(0)
        with context:
            results.append(PRODUCTS[product](*sizes, strided))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "product",
    [
        "linear",
        "matrices",
        "few pairs",
        "into a tensor",
        "with a row added",
        "pairs with a row added",
        "attention",
    ],
)
@torch.inference_mode()
def test_products_are_made_by_onednn(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = counted(monkeypatch)
    PRODUCTS[product](6, 5, 4, False)
    assert not shapes
    with onednn.products():
        PRODUCTS[product](6, 5, 4, False)
    assert shapes


@torch.inference_mode()
def test_what_autocast_rounds_and_other_numbers_stay_with_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = counted(monkeypatch)
    with onednn.products():
        x = torch.randn(4, 4)
        assert (x.double() @ x.double()).dtype == torch.float64
        assert (x.bfloat16() @ x.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert (x @ x).dtype == torch.bfloat16
            assert F.linear(x, x).dtype == torch.bfloat16
    assert not shapes


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this CPU"
)
@torch.inference_mode()
def test_attention_under_autocast_is_rounded_once() -> None:
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(1, 2, 70, 16) for _ in range(3))
    exact = F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        of_torch = F.scaled_dot_product_attention(q, k, v)
        with onednn.products():
            found = F.scaled_dot_product_attention(q, k, v)
    assert found.dtype == of_torch.dtype == torch.bfloat16
    assert (found - exact).abs().max() < 1.5 * (of_torch - exact).abs().max()


@pytest.mark.parametrize("valid", [None, 7])
def test_explicit_attention_is_that_of_torch(valid: int | None) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, 12, 16, requires_grad=True) for _ in range(3)]
    mask = None if valid is None else (torch.arange(12) < valid)[None, None, None]

    def of(function: Callable[..., Tensor]) -> list[Tensor]:
        message = function(*inputs, attn_mask=mask)
        return [message, *torch.autograd.grad(message.float().square().sum(), inputs)]

    expected = of(F.scaled_dot_product_attention)
    with torch.autocast("cpu", torch.bfloat16), onednn.explicit_attention():
        found = of(F.scaled_dot_product_attention)
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "photos"), [(jamma_matcher, photographs), (eloftr_matcher, translated)]
)
def test_networks_match_alike(
    build: Callable[[], Any], photos: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = counted(monkeypatch)
    found = []
    for faster in (False, True):
        monkeypatch.setattr(onednn, "is_faster", lambda faster=faster: faster)
        found.append(matched(build(), photos()))
        assert bool(shapes) == faster
    torch.testing.assert_close(found[1].keypoints0, found[0].keypoints0, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1].scores, found[0].scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "AMD Ryzen 9 9950X", "avx512_f": True}, True),
        ({"cpu_name": "AMD Ryzen 5 5600", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_they_are_faster_on_amd_with_avx512(
    capabilities: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert onednn.is_faster() is expected
