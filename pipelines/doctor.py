"""Say what this machine can do: versions, devices, scan backends, weights, extras, matchers.

    python -m pipelines.doctor [--all] [--json]

Downloads nothing and needs a few seconds. A part that cannot be examined is reported as such.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import sfm_matchers
from pipelines.command import run_guarded
from pipelines.options import Parser, program

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
    "evaluation": ("poselib", "poses by PoseLib's LO-RANSAC in pipelines.evaluate"),
    "onnx": ("onnxscript", "ONNX files by pipelines.export"),
    "superpoint": ("transformers", "SuperPoint keypoints"),
    "ray": ("ray", "matching on several machines"),
    "serve": ("fastapi", "a map as an HTTP service, by pipelines.serve"),
    "docs": ("mkdocs", "the documentation as a site"),
}

# The front-ends of confs that need an extra.
EXTRA_OF_FRONT_END = {"superpoint": "superpoint"}

PYCOLMAP_CUDA = {True: "with CUDA", False: "without CUDA", None: "cannot be imported"}


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
    conf: Any, known: list[dict[str, Any]], installed: dict[str, dict[str, Any]]
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


def describe(report: dict[str, Any]) -> str:
    """Return the report as text."""
    sections: dict[str, Callable[[Any], list[str]]] = {
        "versions": lambda found: [f"{name:<14}{version}" for name, version in found.items()],
        "devices": _describe_devices,
        "scan_backends": _describe_scans,
        "scan_libraries": lambda found: [", ".join(_yes_no(*item) for item in found.items())],
        "weights": _describe_weights,
        "extras": _describe_extras,
        "matchers": _describe_matchers,
    }
    lines = []
    for name, describe_section in sections.items():
        part = report[name]
        failed = isinstance(part, dict) and "error" in part
        content = [f"cannot be examined: {part['error']}"] if failed else describe_section(part)
        lines += [name.replace("_", " ").capitalize(), *(f"  {line}" for line in content), ""]
    return "\n".join(lines).rstrip()


def summarize(report: dict[str, Any]) -> str:
    """Return in a dozen lines what can be done here, and what not."""
    lines = []
    for name, describe_part in (
        ("versions", _short_versions),
        ("devices", _describe_devices),
        ("scan_backends", _short_scans),
        ("matchers", _short_matchers),
        ("extras", _short_extras),
    ):
        part = report[name]
        if isinstance(part, dict) and "error" in part:
            lines.append(f"{name.replace('_', ' ')} cannot be examined: {part['error']}")
        else:
            lines += describe_part(part)
    return "\n".join([*lines, f"More, and every weights file: {program('doctor')} --all"])


def _short_versions(found: dict[str, str]) -> list[str]:
    named = ("sfm-matchers", "python", "torch", "pycolmap")
    return [", ".join(f"{name} {found[name]}" for name in named)]


def _short_scans(found: dict[str, Any]) -> list[str]:
    names = (f"{choice['backend']} on {kind}" for kind, choice in found["devices"].items())
    return [f"scan          {', '.join(names)}"]


def _short_matchers(found: list[dict[str, Any]]) -> list[str]:
    usable = [entry for entry in found if not entry["needs"]]
    lines = [f"usable        {', '.join(entry['name'] for entry in usable) or 'no matcher'}"]
    for entry in found:
        if entry["needs"]:
            lines.append(f"not yet       {entry['name']}: needs {', '.join(entry['needs'])}")
    return lines


def _short_extras(found: dict[str, dict[str, Any]]) -> list[str]:
    absent = [name for name, entry in found.items() if not entry["installed"]]
    return [f"extras        not installed: {', '.join(absent)}"] if absent else []


def _yes_no(name: str, is_there: bool) -> str:
    return f"{name} {'yes' if is_there else 'no'}"


def _describe_devices(found: dict[str, Any]) -> list[str]:
    gpus = [f"{gpu['name']}, {gpu['memory_gb']} GB" for gpu in found["cuda"]]
    return [
        f"CPU           {found['cpu_threads']} threads, networks in {found['cpu_precision']}, "
        f"matrix products by {found['cpu_products']}",
        f"CUDA          {'; '.join(gpus) or 'none'}",
        f"MPS           {'yes' if found['mps'] else 'none'}",
        f"pycolmap      {PYCOLMAP_CUDA[found['pycolmap_cuda']]}",
    ]


def _describe_scans(found: dict[str, Any]) -> list[str]:
    lines = []
    for device, choice in found["devices"].items():
        lines.append(f"{device:<14}{choice['backend']}")
        lines += [f"{'':<14}not {name}: {why}" for name, why in choice["unusable"].items()]
    if found["forced"]:
        lines.append(f"SFM_MATCHERS_SCAN={found['forced']} overrides this")
    return lines


def _describe_weights(found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for entry in found:
        lines.append(f"{entry['name']:<30}{'present' if entry['present'] else 'missing'}")
        facts = {"licence": f"{entry['licence']}: {entry['allows']}"}
        facts["trained on"] = entry["trained_on"]
        if entry["url"]:
            facts["from"] = entry["url"] + (" (by hand)" if entry["by_hand"] else "")
        facts["file"] = entry["path"]
        facts["note"] = entry["note"]
        lines += [f"    {name:<12}{fact}" for name, fact in facts.items() if fact]
    return lines


def _describe_extras(found: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{extra:<14}{'installed' if entry['installed'] else entry['install']} ({entry['gives']})"
        for extra, entry in found.items()
    ]


def _describe_matchers(found: list[dict[str, Any]]) -> list[str]:
    lines = []
    for entry in found:
        option = f" with --weights {entry['weights']}" if entry["weights"] else ""
        state = f"needs {', '.join(entry['needs'])}" if entry["needs"] else f"usable{option}"
        lines.append(f"{entry['name']:<24}{state}")
    return lines


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("doctor"), description=__doc__)
    parser.add_argument(
        "--all", action="store_true", help="all versions, every weights file with its licence, ..."
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    options = Namespace(**build_parser().parse(arguments))

    def job() -> int:
        report = examine()
        describe_it = describe if options.all else summarize
        print(json.dumps(report, indent=2) if options.json else describe_it(report))
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
