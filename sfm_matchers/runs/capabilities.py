"""What this machine can do: versions, devices, scan backends, weights, extras, matchers.

Nothing is downloaded. Each part imports what it needs, so that one that cannot is no reason not to
examine the others.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sfm_matchers

if TYPE_CHECKING:
    from sfm_matchers.confs import Conf

DISTRIBUTIONS = {
    "torch": ["torch"],
    "numpy": ["numpy"],
    "pycolmap": ["pycolmap", "pycolmap-cuda12", "pycolmap-cuda"],
    "kornia": ["kornia"],
    "opencv": ["opencv-python-headless", "opencv-python", "opencv-contrib-python"],
    "h5py": ["h5py"],
    "safetensors": ["safetensors"],
}

# Extra of pyproject.toml -> the module it is for, and what that gives.
EXTRAS = {
    "fast": ("numba", "a faster selective scan on CPUs"),
    "heic": ("pillow_heif", "HEIC photos, as phones take them"),
    "video": ("av", "frames of a video as photos"),
    "mamba": ("mamba_ssm", "the CUDA selective scan of mamba-ssm"),
    "evaluation": ("poselib", "poses by PoseLib's LO-RANSAC in sfm-matchers evaluate"),
    "onnx": ("onnxscript", "ONNX files by sfm-matchers export"),
    "superpoint": ("transformers", "SuperPoint keypoints"),
    "ray": ("ray", "matching on several machines"),
    "serve": ("fastapi", "a map as an HTTP service, by sfm-matchers serve"),
    "docs": ("mkdocs", "the documentation as a site"),
}

# The front-ends of confs that need an extra.
EXTRA_OF_FRONT_END = {"superpoint": "superpoint"}


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on."""
    found = {"sfm-matchers": sfm_matchers.__version__, "python": platform.python_version()}
    for name, distributions in DISTRIBUTIONS.items():
        found[name] = next(filter(None, map(_version, distributions)), "not installed")
    return found


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> dict[str, Any]:
    """Return the devices torch can use, and whether pycolmap has CUDA."""
    import torch

    from sfm_matchers.networks import onednn
    from sfm_matchers.networks.precision import default_precision

    cuda = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_gb": round(torch.cuda.get_device_properties(index).total_memory / 1e9, 1),
        }
        for index in range(torch.cuda.device_count())
    ]
    return {
        "cpu_threads": torch.get_num_threads(),
        "cpu_precision": default_precision("cpu"),
        "cpu_products": "oneDNN" if onednn.is_faster() else "torch's BLAS",
        "cuda": cuda,
        "mps": torch.backends.mps.is_available(),
        "pycolmap_cuda": _pycolmap_has_cuda(),
    }


def _pycolmap_has_cuda() -> bool | None:
    """Tell whether pycolmap was built with CUDA; None if it cannot be imported."""
    try:
        import pycolmap
    except ImportError:
        return None
    return bool(pycolmap.has_cuda)


def scan_backends() -> dict[str, Any]:
    """Return, for each kind of device here, the selective scan's backend and why not the others."""
    import torch

    kinds = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return {
        "forced": os.environ.get("SFM_MATCHERS_SCAN"),
        "devices": {kind: _scan_backend(kind) for kind, is_here in kinds.items() if is_here},
    }


def _scan_backend(device: str) -> dict[str, Any]:
    from sfm_matchers.networks.selective_scan import default_backend, unusable_backends

    return {"backend": default_backend(device), "unusable": unusable_backends(device)}


def scan_libraries() -> dict[str, bool]:
    """Return which of the libraries behind the faster scans can be found."""
    modules = ["numba", "triton", "mamba_ssm", "selective_scan_cuda"]
    return {module: importlib.util.find_spec(module) is not None for module in modules}


def weights() -> list[dict[str, Any]]:
    """Return every checkpoint of the registry: whether it is here, whence it comes, its licence."""
    from sfm_matchers.weights import all_checkpoints, checkpoint_path

    report = []
    for checkpoint in all_checkpoints():
        path = checkpoint_path(checkpoint)
        report.append(
            {
                "name": checkpoint.name,
                "subject": checkpoint.subject,
                "source": checkpoint.source,
                "present": path.is_file(),
                "path": str(path),
                "url": checkpoint.url,
                "by_hand": checkpoint.by_hand,
                "licence": checkpoint.licence,
                "allows": checkpoint.allows,
                "trained_on": checkpoint.trained_on,
                "note": "; ".join(filter(None, [checkpoint.note, checkpoint.caveat])),
            }
        )
    return report


def extras() -> dict[str, dict[str, Any]]:
    """Return which optional libraries are installed, and the line that installs each."""
    return {
        extra: {
            "installed": importlib.util.find_spec(module) is not None,
            "gives": gives,
            "install": f"pip install 'sfm-matchers[{extra}]'",
        }
        for extra, (module, gives) in EXTRAS.items()
    }


def matchers() -> list[dict[str, Any]]:
    """Return every matcher conf: what it still needs, and the weights it would use.

    `needs` is empty where the matcher can run now; otherwise each entry is something to do.
    """
    from sfm_matchers.confs import conf_names, load_conf

    known = weights()
    installed = extras()
    return [_matcher(load_conf(name), known, installed) for name in conf_names()]


def _matcher(
    conf: Conf, known: list[dict[str, Any]], installed: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    from sfm_matchers.confs import SparseConf
    from sfm_matchers.networks.table import NETWORKS
    from sfm_matchers.weights import needs_weights, subject_name

    needs: list[str] = []
    source = None
    if isinstance(conf, SparseConf):
        front_end = conf.features.name
        extra = EXTRA_OF_FRONT_END.get(front_end)
        if extra and not installed[extra]["installed"]:
            needs.append(installed[extra]["install"])
        if needs_weights(front_end):
            needs += _choose(front_end, known)[1]
    if conf.matcher in NETWORKS:
        features = NETWORKS[conf.matcher].features(conf.options.get("features"))
        subject = subject_name(conf.matcher, features)
        source, missing = _choose(subject, known)
        needs += missing
    return {"name": conf.name, "weights": source, "needs": needs}


def _choose(subject: str, known: list[dict[str, Any]]) -> tuple[str | None, list[str]]:
    """Return the source of weights to use, one that is here if possible, and what it needs."""
    from sfm_matchers.weights.download import is_offline

    entries = [entry for entry in known if entry["subject"] == subject]
    for entry in entries:
        if entry["present"]:
            return entry["source"], []
    for entry in entries:
        if not entry["by_hand"]:
            obstacle = ", which SFM_MATCHERS_OFFLINE forbids" if is_offline() else ""
            return entry["source"], [f"a download of {entry['name']}{obstacle}"]
    return None, [f"weights for {subject}, which nobody has published: --weights PATH"]


def examine() -> dict[str, Any]:
    """Run every examination; one that fails is reported as {"error": reason}."""
    parts: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "devices": devices,
        "scan_backends": scan_backends,
        "scan_libraries": scan_libraries,
        "weights": weights,
        "extras": extras,
        "matchers": matchers,
    }
    return {name: _attempt(part) for name, part in parts.items()}


def _attempt(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except Exception as error:  # a broken library can fail in any way; the rest is still of use
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}
