"""Registry, download, reading of checkpoints, and loading into the networks."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from material import shared_path
from torch import Tensor, nn

from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.files.fingerprints import file_sha256
from sfm_matchers.files.notes import copy_of
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMa, JamMaConfig
from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.weights import (
    Checkpoint,
    WeightsMetadata,
    all_checkpoints,
    cache_dir,
    convert_jamma,
    download,
    fetch,
    find_checkpoint,
    find_weights,
    load_network,
    load_state_dict_file,
    registry,
    save_bundled,
    weights_fingerprint,
)

CONTENT = b"not really weights" * 100_000
CONTENT_SHA256 = "f3" * 32


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache and the package's bundled weights out of the tests."""
    monkeypatch.setenv("SFM_MATCHERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SFM_MATCHERS_OFFLINE", raising=False)
    for module in (registry, download):
        monkeypatch.setattr(module, "BUNDLED_DIR", tmp_path / "bundled")


# Registry


def test_registry_names_are_unique_and_every_licence_is_explained() -> None:
    names = [entry.name for entry in registry.OFFICIAL]
    assert len(set(names)) == len(names)
    for entry in registry.OFFICIAL:
        assert entry.url.startswith("https://")
        assert entry.licence in registry.LICENCE_ALLOWS
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
        assert find_checkpoint(entry.name) == entry


def test_every_network_has_an_official_checkpoint() -> None:
    sources = {entry.network for entry in registry.OFFICIAL}
    assert {"jamma", "mambaglue", "eloftr", "aliked-n16", "disk", "superpoint"} <= sources


def test_the_superpoint_licence_forbids_commercial_use() -> None:
    checkpoint = find_checkpoint("superpoint/official")
    assert checkpoint is not None
    assert "non-commercial" in checkpoint.licence
    assert "research only" in checkpoint.allows


def bundle(network: str, features: str | None = None) -> WeightsMetadata:
    return WeightsMetadata(network, "rendered scenes", 1200, {"recall@3px": 0.5}, features=features)


def test_bundled_files_describe_themselves(tmp_path: Path) -> None:
    path = tmp_path / "bundled" / "mambaglue-aliked.safetensors"
    save_bundled({"w": torch.ones(2, 2)}, path, bundle("mambaglue", "aliked"))
    checkpoint = find_checkpoint("mambaglue-aliked/bundled")
    assert checkpoint is not None
    assert checkpoint.is_bundled
    assert checkpoint.trained_on == "rendered scenes"
    assert checkpoint.licence == "Apache-2.0"
    assert checkpoint.note == "recall@3px 0.5"
    assert fetch(checkpoint) == path
    assert WeightsMetadata.from_file(path) == bundle("mambaglue", "aliked")
    assert path.stat().st_mode & 0o444 == 0o444


def test_weights_recommend_options_of_their_network(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    metadata = replace(bundle("jamma"), config={"coarse_threshold": 0.7})
    save_bundled(JamMa().state_dict(), path, metadata)
    assert load_network("jamma", str(path)).config == JamMaConfig(coarse_threshold=0.7)
    chosen = load_network("jamma", str(path), coarse_threshold=0.3)
    assert chosen.config == JamMaConfig(coarse_threshold=0.3)
    save_bundled(JamMa().state_dict(), path, replace(metadata, config={"patience": 1.0}))
    with pytest.raises(WeightsError, match="patience") as error:
        load_network("jamma", str(path))
    one_line(error)


HEADERS = {
    "config a list": {"config": "[1]"},
    "config of another type": {"config": '{"border": "two"}'},
    "config not finite": {"config": '{"coarse_threshold": NaN}'},
    "config beyond all": {"config": "[" * 100_000},
    "metrics text": {"metrics": '"good"'},
    "metrics of text": {"metrics": '{"auc": "good"}'},
    "steps a word": {"steps": "many"},
    "no licence": {"licence": None},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS.keys())
def test_damaged_headers_are_named(tmp_path: Path, change: dict[str, str | None]) -> None:
    path = tmp_path / "mine.safetensors"
    header = {**bundle("jamma").to_header(), **change}
    stored = {key: value for key, value in header.items() if value is not None}
    safetensors.torch.save_file({"w": torch.ones(1)}, path, metadata=stored)
    with pytest.raises(WeightsError, match="header") as error:
        load_network("jamma", str(path))
    one_line(error)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state_dict = JamMa().state_dict()
    key = next(iter(state_dict))
    state_dict[key].view(-1)[0] = value
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(state_dict, path)
    with pytest.raises(WeightsError, match=rf"1 tensors are not finite \(first: {key}\)"):
        load_network("jamma", str(path))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_floats_of_eight_bits_are_widened(tmp_path: Path, kind: torch.dtype) -> None:
    state_dict = JamMa().state_dict()
    key = next(key for key, tensor in state_dict.items() if tensor.dim() > 1)
    state_dict[key] = state_dict[key].to(kind)
    for name, save in (("mine.safetensors", safetensors.torch.save_file), ("mine.pt", torch.save)):
        save(state_dict, tmp_path / name)
        network = load_network("jamma", str(tmp_path / name))
        assert torch.equal(network.state_dict()[key], state_dict[key].float())


@pytest.mark.parametrize(
    "odd",
    [torch.eye(3).to_sparse(), torch.ones(3, device="meta")],
    ids=["sparse", "without content"],
)
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    path = tmp_path / "mine.pt"
    torch.save({"w": torch.ones(1), "odd": odd}, path)
    with pytest.raises(WeightsError, match="'odd' is no plain tensor of numbers") as error:
        load_state_dict_file(path)
    one_line(error)
    assert str(error.value).startswith(str(path))


def test_weights_of_zeros_are_refused(tmp_path: Path) -> None:
    state_dict = JamMa().state_dict()
    for tensor in list(state_dict.values())[len(state_dict) // 4 :]:
        tensor.zero_()
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(state_dict, path)
    with pytest.raises(WeightsError, match="matrices hold zeros only"):
        load_network("jamma", str(path))


def test_weights_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    state_dict = JamMa().state_dict()
    key = next(key for key, tensor in state_dict.items() if tensor.is_floating_point())
    state_dict[key] = state_dict[key].to(torch.int32)
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(state_dict, path)
    with pytest.raises(WeightsError, match=rf"not of floating point \(first: {key} as int32\)"):
        load_network("jamma", str(path))


def test_a_damaged_bundled_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "jamma.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(WeightsError, match=r"jamma\.safetensors") as error:
        all_checkpoints()
    one_line(error)


def test_a_foreign_file_in_the_bundled_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "bundled" / "x.safetensors")
    with pytest.raises(WeightsError, match="must name its network"):
        all_checkpoints()


# Download


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path: /ok, /short (fewer bytes than announced), /page, /away, else 404."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/ok")
            self.end_headers()
        elif self.path in ("/ok", "/short", "/page"):
            self.send_response(200)
            page = self.path == "/page"
            self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who finds it too long hangs up
                self.wfile.write(CONTENT[:-1] if self.path == "/short" else CONTENT)
        else:
            self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve on the loopback interface; plain http is allowed here only."""
    monkeypatch.setattr(download, "ALLOWED_SCHEMES", ("http",))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def example(url: str, **fields: object) -> Checkpoint:
    common = {"licence": "MIT", "trained_on": "nothing", "layout": "none"}
    return Checkpoint("x/official", "x", "x.ckpt", url, **{**common, **fields})  # type: ignore[arg-type]


def cached() -> list[Path]:
    return sorted(cache_dir().iterdir()) if cache_dir().is_dir() else []


def sha256_of_content(tmp_path: Path) -> str:
    (tmp_path / "content").write_bytes(CONTENT)
    return file_sha256(tmp_path / "content")


def test_download_keeps_the_whole_file_and_asks_the_server_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = example(f"{server}/ok", sha256=sha256_of_content(tmp_path), size=len(CONTENT))
    path = fetch(checkpoint)
    assert path == cache_dir() / "x.ckpt"
    assert path.read_bytes() == CONTENT
    assert cached() == [path]
    monkeypatch.setenv("SFM_MATCHERS_OFFLINE", "1")
    assert fetch(checkpoint) == path


@pytest.mark.parametrize(
    ("path", "fields", "reason"),
    [
        ("/ok", {"sha256": CONTENT_SHA256}, "sha256"),
        ("/ok", {"size": 17}, "expected 17"),
        ("/short", {}, f"gave {len(CONTENT) - 1} bytes"),
        ("/page", {}, "web page"),
        ("/away", {}, "not an https address"),
        ("/missing", {}, "404"),
    ],
)
def test_a_wrong_download_leaves_no_file(
    server: str, path: str, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason) as error:
        fetch(example(server + path, **fields))
    one_line(error)
    assert cached() == []


def test_a_wrong_download_leaves_the_file_that_was_there(server: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"good")
    with pytest.raises(WeightsError):
        download.download(f"{server}/ok", path, sha256=CONTENT_SHA256)
    assert path.read_bytes() == b"good"
    assert list(tmp_path.glob(".*")) == []


def test_an_interrupted_download_leaves_no_file(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(example(f"{server}/ok"))
    assert cached() == []


def test_a_damaged_file_in_the_cache_is_refused() -> None:
    cache_dir().mkdir()
    (cache_dir() / "x.ckpt").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="delete it"):
        fetch(example("https://example.invalid/x", sha256=CONTENT_SHA256))


@pytest.mark.parametrize("url", ["http://example.invalid/x", "file:///etc/passwd"])
def test_only_https_is_fetched(url: str) -> None:
    with pytest.raises(WeightsError, match="not an https address"):
        fetch(example(url))


def test_offline_says_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SFM_MATCHERS_OFFLINE", "1")
    with pytest.raises(WeightsError) as error:
        find_weights("jamma", "official")
    message = one_line(error)
    assert "https://github.com/leoluxxx/JamMa/releases/download/v0.1/jamma.ckpt" in message
    assert str(cache_dir() / "jamma.ckpt") in message


def test_no_network_says_what_to_download_and_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "ALLOWED_SCHEMES", ("http",))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = "http://127.0.0.1:1/x.ckpt"  # nothing listens on port 1
    with pytest.raises(WeightsError, match="cannot fetch") as error:
        fetch(example(url))
    assert f"download {url} and save it as {cache_dir() / 'x.ckpt'}" in one_line(error)


def test_weights_without_a_published_checksum_stay_what_they_were_at_first(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = example(f"{server}/ok")
    path = fetch(checkpoint)
    assert "no checksum of these weights is published" in caplog.text
    memory = path.with_name("x.ckpt.sha256")
    assert memory.read_text() == f"{sha256_of_content(tmp_path)}  x.ckpt\n"
    caplog.clear()
    assert fetch(checkpoint) == path
    assert not caplog.text
    noted = memory.read_text()
    for damaged in ("", noted[:30], "0" + noted[1:]):
        memory.write_text(damaged)
        caplog.clear()
        assert fetch(checkpoint) == path
        assert f"{memory} is damaged: it is made again from its copy" in caplog.text
        assert memory.read_text() == noted
    path.write_bytes(b"other")
    memory.write_text("")
    with pytest.raises(WeightsError, match="is not the file that was there at first") as error:
        fetch(checkpoint)
    one_line(error)
    path.unlink()
    for note in (memory, copy_of(memory)):
        note.write_text(noted.replace(sha256_of_content(tmp_path), 64 * "0"))
    with pytest.raises(WeightsError, match="expected 0000"):
        fetch(checkpoint)
    assert not path.exists()
    for note in (memory, copy_of(memory)):
        note.write_text("?")
    with pytest.raises(WeightsError, match="is damaged: delete it"):
        fetch(checkpoint)
    memory.unlink()
    path.write_bytes(b"by hand")
    assert fetch(checkpoint) == path
    assert memory.exists()


def test_a_file_without_direct_link_is_fetched_by_hand() -> None:
    with pytest.raises(WeightsError, match="no direct link") as error:
        find_weights("eloftr", "authors")
    assert str(cache_dir() / "eloftr_outdoor.ckpt") in one_line(error)


# Reading files


STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "global_step": 7},
        lambda state: {"model": state, "optimizer": {"param_groups": [{"lr": 1e-4}]}},
        lambda state: {"extractor": state},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_checkpoints_are_unwrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], zipped: bool
) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)
    assert_same(load_state_dict_file(path), STATE)


def test_safetensors_files_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "weights.safetensors")
    assert_same(load_state_dict_file(tmp_path / "weights.safetensors"), STATE)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("keep", [0, 1, 100, -50])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".ckpt":
        torch.save(STATE, path)
    else:
        safetensors.torch.save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged") as error:
        load_state_dict_file(path)
    assert str(path) in one_line(error)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.target, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    path, target = tmp_path / "weights.ckpt", tmp_path / "executed"
    content = {"state_dict": STATE, "callbacks": Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused") as error:
        load_state_dict_file(path)
    assert str(path) in one_line(error)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert target.exists()


@pytest.mark.parametrize("name", ["weights.ckpt", "weights.safetensors"])
def test_a_plain_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, name: str) -> None:
    path, target = tmp_path / name, tmp_path / "executed"
    path.write_bytes(pickle.dumps({"state_dict": Payload(target)}))
    with pytest.raises(WeightsError, match=name) as error:
        load_state_dict_file(path)
    one_line(error)
    assert not target.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "weights.ckpt")
    with pytest.raises(WeightsError, match=r"refers to .*torch\.nn\.modules\.linear\.Linear"):
        load_state_dict_file(tmp_path / "weights.ckpt")


def test_training_state_in_a_checkpoint_is_left_out_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning keys the state of callbacks by their class: it is neither imported nor built."""
    built = []
    module = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint:
        def __setstate__(self, state: object) -> None:
            built.append(state)

    ModelCheckpoint.__module__ = module.__name__
    ModelCheckpoint.__qualname__ = "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    callback = ModelCheckpoint()
    callback.best = 0.5  # type: ignore[attr-defined]
    content = {"state_dict": STATE, "callbacks": {ModelCheckpoint: {"best": 1}, "x": callback}}
    torch.save(content, tmp_path / "weights.ckpt")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert_same(load_state_dict_file(tmp_path / "weights.ckpt"), STATE)
    assert built == []


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 1}, {"state_dict": {"a": 1}}])
def test_files_without_tensors_are_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "weights.ckpt")
    with pytest.raises(WeightsError, match=r"weights\.ckpt") as error:
        load_state_dict_file(tmp_path / "weights.ckpt")
    one_line(error)


def test_text_and_absent_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("these are not weights")
    for name in ("notes.ckpt", "absent.ckpt"):
        with pytest.raises(WeightsError, match=name) as error:
            load_state_dict_file(tmp_path / name)
        one_line(error)


def test_an_unexplained_key_in_a_jamma_checkpoint_is_named() -> None:
    state = {"backbone.a": torch.ones(1), "matcher.b": torch.ones(1)}
    assert_same(convert_jamma.convert(state), state)
    with pytest.raises(WeightsError, match=r"'loss\.scale'"):
        convert_jamma.convert({**state, "loss.scale": torch.ones(1)})


# Loading into networks

CONFIGS: dict[str, dict[str, Any]] = {
    "jamma": {},
    "mambaglue": {"num_layers": 1, "features": "aliked"},
    "eloftr": {},
}


def random_network(network: str, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    if network == "jamma":
        return JamMa(JamMaConfig(**config))
    if network == "mambaglue":
        return MambaGlue(MambaGlueConfig(**config))
    return EfficientLoFTR(EfficientLoFTRConfig(**config))


@pytest.mark.slow
@pytest.mark.parametrize("network", CONFIGS)
def test_bundled_weights_come_back_as_single_precision(network: str, tmp_path: Path) -> None:
    config = CONFIGS[network]
    expected = random_network(network, **config)
    path = tmp_path / "bundled" / "any.safetensors"
    features = NETWORKS[network].features(config.get("features"))
    save_bundled(expected.state_dict(), path, bundle(network, features))
    with torch.no_grad():
        for tensor in expected.state_dict().values():
            if tensor.dim() > 1:
                tensor.copy_(tensor.half())

    found = load_network(network, "bundled", **config)

    assert not found.training
    if isinstance(expected, EfficientLoFTR):
        expected.fuse()
    assert_same(found.state_dict(), expected.state_dict())


def test_official_jamma_weights_want_squares(tmp_path: Path) -> None:
    for name, is_official in (("jamma.ckpt", True), ("mine.ckpt", False)):
        torch.save({"state_dict": JamMa().state_dict()}, tmp_path / name)
        network = load_network("jamma", str(tmp_path / name))
        assert network.config == JamMaConfig(pad_to_square=is_official)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_efficient_loftr_is_loaded_fused_from_either_form(fused: bool, tmp_path: Path) -> None:
    network = random_network("eloftr")
    assert isinstance(network, EfficientLoFTR)
    path = tmp_path / "weights.ckpt"
    if fused:
        network.fuse()
    torch.save(network.state_dict(), path)
    assert_same(load_network("eloftr", str(path)).state_dict(), network.fuse().state_dict())


def test_half_precision_files_are_half_as_large_and_refuse_what_does_not_fit(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.safetensors"
    save_bundled({"w": torch.ones(1000, 100)}, path, bundle("jamma"))
    assert path.stat().st_size < 2 * 100_000 + 1000
    before = path.read_bytes()
    for value in (1e5, float("nan")):
        with pytest.raises(WeightsError, match="w is not finite"):
            save_bundled({"w": torch.full((2, 2), value)}, path, bundle("jamma"))
    assert path.read_bytes() == before
    assert list(tmp_path.glob(".*")) == []


def test_eight_bits_keep_each_channel_to_its_own_precision(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = (
        torch.randn(64, 32, 3, 3, generator=generator)
        * torch.logspace(-3, 1, 64)[:, None, None, None]
    )
    kernel[5] = 0
    small = torch.randn(4, 4, generator=generator)
    path = tmp_path / "x.safetensors"
    bias = torch.randn(64, generator=generator)
    tensors = {"kernel.weight": kernel, "small.weight": small, "bias": bias}
    save_bundled(tensors, path, bundle("eloftr"), eight_bits=True)
    assert path.stat().st_size < kernel.numel() + 2000
    found = load_state_dict_file(path)
    assert found.keys() == tensors.keys()
    largest = kernel.abs().amax((1, 2, 3))
    error = (found["kernel.weight"] - kernel).abs().amax((1, 2, 3))
    assert (error <= largest * (0.5 / 127 + 1e-3)).all()
    torch.testing.assert_close(found["small.weight"].float(), small.half().float(), rtol=0, atol=0)


def test_absent_bundled_weights_say_what_else_to_use() -> None:
    with pytest.raises(WeightsError) as error:
        load_network("jamma", "bundled")
    assert one_line(error) == (
        "jamma has no weights 'bundled', nor is that a file: "
        "use --weights official or --weights PATH"
    )
    with pytest.raises(WeightsError) as error:
        load_network("mambaglue", "official", features="aliked")
    assert one_line(error).endswith(
        "'official', nor is that a file: use --weights lightglue or --weights PATH"
    )


def test_an_unknown_network_and_an_absent_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'loftr'.*eloftr"):
        load_network("loftr")
    path = tmp_path / "absent.ckpt"
    with pytest.raises(WeightsError, match=r"absent\.ckpt") as error:
        load_network("jamma", str(path))
    one_line(error)


@pytest.mark.parametrize("network", CONFIGS)
@pytest.mark.parametrize("other", CONFIGS)
def test_weights_of_another_network_are_refused(network: str, other: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": random_network(other, **CONFIGS[other]).state_dict()}, path)
    if network == other:
        load_network(network, str(path), **CONFIGS[network])
        return
    with pytest.raises(WeightsError, match=r"weights\.ckpt") as error:
        load_network(network, str(path), **CONFIGS[network])
    assert len(one_line(error)) < 400


@pytest.mark.parametrize("network", CONFIGS)
def test_an_incomplete_checkpoint_names_what_is_missing(network: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    state = random_network(network, **CONFIGS[network]).state_dict()
    dropped = next(key for key in state if key.endswith("weight"))
    del state[dropped]
    torch.save(state, path)
    with pytest.raises(WeightsError, match="1 tensors missing") as error:
        load_network(network, str(path), **CONFIGS[network])
    assert dropped in one_line(error)


def test_weights_for_other_descriptors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save(random_network("mambaglue", num_layers=1, features="aliked").state_dict(), path)
    with pytest.raises(WeightsError, match=r"input_proj") as error:
        load_network("mambaglue", str(path), num_layers=1, features="superpoint")
    one_line(error)
    with pytest.raises(WeightsError, match=r"of another shape.*posenc"):
        load_network("mambaglue", str(path), num_layers=1, features="sift")


def test_our_files_tell_front_ends_of_one_descriptor_length_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    network = random_network("mambaglue", num_layers=1, features="aliked")
    save_bundled(network.state_dict(), path, bundle("mambaglue", "aliked"))
    load_network("mambaglue", str(path), num_layers=1, features="aliked")
    with pytest.raises(WeightsError, match="made for mambaglue-aliked, not for mambaglue-disk"):
        load_network("mambaglue", str(path), num_layers=1, features="disk")


@pytest.mark.parametrize("weights", ["official", "path"])
def test_the_public_mambaglue_weights_are_announced_as_a_pre_publication_version(
    weights: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cache_dir() if weights == "official" else tmp_path
    folder.mkdir(exist_ok=True)
    path = folder / "superpoint_mambaglue.tar"
    state = random_network("mambaglue", num_layers=1).state_dict()
    released = {"extractor.conv1a.weight": torch.ones(1)}
    for key, tensor in state.items():
        if key != "confidence_thresholds":
            key = key.replace("transformermambas.", "transformers.")
            released["matcher." + key.replace("mamba_selfattn_mixer", "mamba_self_attn")] = tensor
    torch.save({"model": released, "epoch": 39}, path)
    with caplog.at_level(logging.WARNING):
        network = load_network(
            "mambaglue", weights if weights == "official" else str(path), num_layers=1
        )
    assert_same(network.state_dict(), state)
    assert "pre-publication" in caplog.text
    assert "below LightGlue" in caplog.text


def test_the_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"one")
    first = weights_fingerprint("jamma", str(path))
    assert first == weights_fingerprint("jamma", str(path))
    path.write_bytes(b"two")
    assert first != weights_fingerprint("jamma", str(path))


def test_the_jamma_state_dict_of_the_authors_loads_strictly(tmp_path: Path) -> None:
    facts = json.loads(shared_path("networks/jamma/state_dict.json").read_text())
    state = {
        item["key"]: torch.full(item["shape"], 0.5).to(getattr(torch, item["dtype"]))
        for item in facts["items"]
    }
    path = tmp_path / "jamma.ckpt"
    torch.save({"state_dict": state, "epoch": 29, "global_step": 1}, path)
    assert_same(load_network("jamma", str(path)).state_dict(), state)
