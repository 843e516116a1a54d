"""From a file of weights to a network that is ready to run.

Nothing in a file is ever executed: safetensors holds numbers only, and pickles are read by torch's
restricted unpickler.
"""

from __future__ import annotations

import logging
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfm_matchers.confs import check_options
from sfm_matchers.errors import InputError, WeightsError, one_line
from sfm_matchers.files.fingerprints import file_sha256
from sfm_matchers.networks.table import NETWORKS, Network, resolve
from sfm_matchers.weights.download import fetch
from sfm_matchers.weights.precision import SCALE_SUFFIX, to_eight_bits, to_half
from sfm_matchers.weights.registry import (
    OFFICIAL,
    Checkpoint,
    WeightsMetadata,
    all_checkpoints,
    find_checkpoint,
    subject_name,
)
from sfm_matchers.weights.safetensors_file import read_safetensors, write_safetensors

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Entries under which training programs keep the state dict: Lightning, glue-factory, DISK, and our
# own, whose running average is what it exports.
CONTAINERS = ("state_dict", "model", "extractor", "average")

# Training checkpoints also pickle the state of callbacks, configurations and metrics. Objects of
# these libraries are read as `_Ignored`; a reference to anything else refuses the whole file.
IGNORED_LIBRARIES = ("lightning.", "pytorch_lightning.", "omegaconf.", "yacs.", "numpy.")

FINGERPRINT_DIGITS = 16
EIGHT_BITS_FROM = 4096  # weights; smaller tensors are few


class _Ignored:
    """Takes the place of an object in a checkpoint that is not a tensor; keeps nothing of it."""

    def __new__(cls, *arguments: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load_state_dict_file(path: str | os.PathLike[str]) -> StateDict:
    """Read the tensors of a safetensors file or of a torch checkpoint, on the CPU, as stored.

    Raises:
        WeightsError: the file is absent, damaged, holds no tensors, or refers to code. One line
            with the file's name and the reason; nothing in the file has been executed.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _plain(read_safetensors(path), path)
    try:
        content = _load_pickle(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message is a page on how to switch its protection off.
        raise WeightsError(f"{path}: damaged, or not tensors: refused, nothing ran") from error
    except Exception as error:  # garbage can make a reader fail in any way
        raise WeightsError(f"{path}: damaged or not a checkpoint ({one_line(error)})") from error
    return _plain(_unwrap(content, path), path)


def _plain(stored: StateDict, path: Path) -> StateDict:
    """Return tensors that can be computed with: floats of eight bits as float32.

    Raises:
        WeightsError: one is sparse, quantized by torch, without content, or of an unknown kind.
    """
    plain = {}
    for key, tensor in stored.items():
        is_dense = tensor.layout is torch.strided and not (
            tensor.is_quantized or tensor.is_meta or tensor.is_nested
        )
        is_narrow = is_dense and tensor.is_floating_point() and tensor.element_size() == 1
        try:
            plain[key] = tensor.float() if is_narrow else tensor
        except NotImplementedError:  # two numbers in a byte
            is_dense = False
        if not is_dense:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WeightsError(f"{path}: {key!r} is no plain tensor of numbers ({kind})")
    return plain


def _load_pickle(path: Path) -> object:
    """Read a torch checkpoint; objects of `IGNORED_LIBRARIES` become `_Ignored`."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
    refused = sorted(name for name in foreign if not name.startswith(IGNORED_LIBRARIES))
    if refused:
        raise WeightsError(
            f"{path}: refers to {', '.join(refused)}, which is no weights: refused, nothing ran"
        )
    stand_ins: list[Any] = [(_Ignored, name) for name in foreign]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch talks of pickle protocols; an error says enough
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: object, path: Path) -> StateDict:
    """Return the state dict inside a training checkpoint, or the content if it is one itself."""
    for container in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(container), dict):
            content = content[container]
            break
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path}: holds no state dict but a {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: not a state dict: entry {key!r} is not a tensor")
    return dict(content)


def table_entry(network: str) -> Network:
    """Return what the table says of a network.

    Raises:
        InputError: there is no such network.
    """
    if network not in NETWORKS:
        raise InputError(f"no network is called {network!r}: choose from {', '.join(NETWORKS)}")
    return NETWORKS[network]


@dataclass(frozen=True)
class WeightsFile:
    """Where the weights of a network lie, and what the registry knows of that file."""

    path: Path
    checkpoint: Checkpoint | None


def find_weights(network: str, weights: str, features: str | None = None) -> WeightsFile:
    """Find the file that `--weights` means; a missing official file is downloaded.

    Args:
        network: a key of `NETWORKS`.
        weights: "bundled", "official", another source in the registry, or a path.
        features: the front-end, for a network that is trained for one; None for its default.

    Raises:
        InputError: no such network.
        WeightsError: there is no such file and none can be had; the message says what to use.
    """
    checkpoint = check_weights(network, weights, features)
    if checkpoint is not None:
        return WeightsFile(fetch(checkpoint), checkpoint)
    path = Path(weights).expanduser()
    known = (entry for entry in OFFICIAL if entry.file_name == path.name)
    return WeightsFile(path, next((entry for entry in known if entry.network == network), None))


def check_weights(network: str, weights: str, features: str | None = None) -> Checkpoint | None:
    """Look whether there are such weights, without a download; arguments as of `find_weights`.

    Returns:
        What the registry knows of them; None for a file.

    Raises:
        InputError: no such network.
        WeightsError: there are none; the message says what to use.
    """
    subject = subject_name(network, table_entry(network).features(features))
    checkpoint = find_checkpoint(f"{subject}/{weights}")
    if checkpoint is None and not Path(weights).expanduser().is_file():
        raise WeightsError(
            f"{subject} has no weights {weights!r}, nor is that a file: {_alternatives(subject)}"
        )
    return checkpoint


def _alternatives(subject: str) -> str:
    """Say which weights could be used instead."""
    sources = [entry.source for entry in all_checkpoints() if entry.subject == subject]
    return "use " + " or ".join(f"--weights {source}" for source in [*sources, "PATH"])


def weights_fingerprint(network: str, weights: str, features: str | None = None) -> str:
    """Return 16 hexadecimal digits that change when the weights change.

    Raises:
        WeightsError: as `find_weights`.
    """
    return file_sha256(find_weights(network, weights, features).path)[:FINGERPRINT_DIGITS]


def load_network(network: str, weights: str = "bundled", **config: Any) -> nn.Module:
    """Build a network with its weights, float32, on the CPU, in evaluation mode.

    Args:
        network: a key of `NETWORKS`.
        weights: "bundled", "official", another source in the registry, or a path.
        config: fields of the network's config, e.g. `features="aliked"` for MambaGlue; the others
            are those that the weights recommend, or defaults.

    Raises:
        InputError: no such network.
        WeightsError: the weights cannot be found, read, or do not fit the network.
    """
    entry = table_entry(network)
    features = entry.features(config.get("features"))
    file = find_weights(network, weights, features)
    metadata = WeightsMetadata.from_file(file.path) if file.path.suffix == ".safetensors" else None
    if metadata is not None:
        _check_metadata(metadata, file.path, network, features)
        config = {**metadata.config, **config}
    elif file.checkpoint is not None:
        config = {**file.checkpoint.config, **config}
    module = _build(entry, config, file.path, load_state_dict_file(file.path))
    if entry.remark and (remark := resolve(entry.remark)(module)):
        logger.warning("%s: %s", file.path.name, remark)
    _report(file)
    return module.eval()


def _check_metadata(
    metadata: WeightsMetadata, path: Path, network: str, features: str | None
) -> None:
    """Refuse a file of ours that says it belongs to another network or front-end, or version.

    Two front-ends with descriptors of one length give files of the same shapes: only the header
    can tell them apart.
    """
    if (metadata.network, metadata.features) != (network, features):
        found = subject_name(metadata.network, metadata.features)
        wanted = subject_name(network, features)
        raise WeightsError(f"{path}: made for {found}, not for {wanted}")
    try:
        check_options(resolve(table_entry(network).config), metadata.config, "config")
    except InputError as error:
        raise WeightsError(
            f"{path}: damaged header, or made for another version of this package: {error}"
        ) from error


def _build(entry: Network, config: dict[str, Any], path: Path, stored: StateDict) -> nn.Module:
    """Return the network with what `path` holds."""
    module: Any = resolve(entry.network)(resolve(entry.config)(**config))
    if entry.fused_key and any(entry.fused_key in key for key in stored):
        module.fuse()
    _load_strictly(module, stored, resolve(entry.converter), path)
    network: nn.Module = module.fuse() if entry.fused_key else module
    return network


def _load_strictly(
    module: nn.Module, stored: StateDict, convert: Callable[[StateDict], StateDict], path: Path
) -> None:
    """Rename what a file holds and copy it into a network, widened to the network's dtype.

    Raises:
        WeightsError: a tensor is missing, unknown, or of another shape or kind of numbers.
    """
    try:
        state_dict = convert(stored)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    own = module.state_dict()
    missing = [key for key in own if key not in state_dict]
    foreign = [key for key in state_dict if key not in own]
    reshaped = [
        f"{key} {tuple(state_dict[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    whole = [
        f"{key} as {state_dict[key].dtype}".replace("torch.", "")
        for key in own
        if key in state_dict
        and own[key].is_floating_point()
        and not state_dict[key].is_floating_point()
    ]
    faults = [
        f"{len(keys)} {what} (first: {keys[0]})"
        for what, keys in [
            ("tensors missing", missing),
            ("not known", foreign),
            ("of another shape", reshaped),
            ("not of floating point", whole),
        ]
        if keys
    ]
    if faults:
        raise WeightsError(
            f"{path}: not the weights of this {type(module).__name__}: {', '.join(faults)}"
        )
    check_finite(state_dict, path)
    module.load_state_dict(state_dict, strict=True)


def check_finite(state_dict: StateDict, path: Path) -> None:
    """Refuse weights with which a network computes nothing.

    Raises:
        WeightsError: a tensor holds NaN or infinity, or most matrices hold zeros only, as where a
            download was cut off after its space was taken.
    """
    damaged = [key for key, tensor in state_dict.items() if not tensor.isfinite().all()]
    if damaged:
        raise WeightsError(
            f"{path}: damaged: {len(damaged)} tensors are not finite (first: {damaged[0]})"
        )
    matrices = [tensor for tensor in state_dict.values() if tensor.ndim > 1]
    num_empty = sum(not tensor.any() for tensor in matrices)
    if 2 * num_empty > len(matrices):
        raise WeightsError(
            f"{path}: damaged: {num_empty} of {len(matrices)} matrices hold zeros only"
        )


def _report(file: WeightsFile) -> None:
    """Log what was loaded, and warn where its quality is known to be limited."""
    checkpoint = file.checkpoint
    if checkpoint is None:
        logger.info("loaded %s", file.path)
        return
    logger.info(
        "loaded %s (%s; trained on %s)", checkpoint.name, checkpoint.licence, checkpoint.trained_on
    )
    if checkpoint.caveat:
        logger.warning("%s: %s", checkpoint.name, checkpoint.caveat)


def save_bundled(
    state_dict: StateDict,
    path: str | os.PathLike[str],
    metadata: WeightsMetadata,
    *,
    eight_bits: bool = False,
) -> None:
    """Write the weights of one of our networks as a half-precision safetensors file, atomically.

    What is halved, `to_half` says.

    Args:
        state_dict: of the network.
        path: of the file.
        metadata: what the file says of itself.
        eight_bits: reduce large matrices and kernels to int8, with a scale per output channel: a
            quarter, and off by 1/254 of a channel's largest weight at most.

    Raises:
        WeightsError: a value is not finite, or too large for half precision.
    """
    stored: StateDict = {}
    for key, tensor in state_dict.items():
        if eight_bits and key.endswith("weight") and tensor.numel() >= EIGHT_BITS_FROM:
            stored[key], stored[key + SCALE_SUFFIX] = to_eight_bits(_halved(key, tensor))
        else:
            stored[key] = _halved(key, tensor)
    write_safetensors(stored, Path(path), metadata.to_header())


def _halved(key: str, tensor: Tensor) -> Tensor:
    tensor = to_half(tensor.detach().cpu())
    if not tensor.isfinite().all():
        raise WeightsError(f"{key} is not finite, or too large for half precision")
    return tensor
