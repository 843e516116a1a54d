"""Say what this machine can do: versions, devices, scan backends, weights, extras, matchers.

    python -m pipelines.doctor [--all] [--try] [--json]

Downloads nothing and needs a few seconds, with `--try` half a minute. A part that cannot be
examined is reported as such.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.command import run_guarded
from pipelines.options import Parser, program
from sfm_matchers.runs.capabilities import examine

if TYPE_CHECKING:
    from sfm_matchers.runs.trials import Trial

PYCOLMAP_CUDA = {True: "with CUDA", False: "without CUDA", None: "cannot be imported"}


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


def try_usable(report: dict[str, Any]) -> list[Trial]:
    """Match two rendered photos by every matcher that can run now."""
    import numpy as np

    from sfm_matchers.evaluation.pair_lists import PosedPair
    from sfm_matchers.runs.trials import try_matchers
    from sfm_matchers.synthetic import Camera, camera_path, make_scene, render

    scene, camera = make_scene(0), Camera.from_field_of_view(640, 480)
    poses = [np.vstack([pose, [0, 0, 0, 1]]) for pose in camera_path(scene, 12)[:2]]
    photos = [render(scene, camera, pose[:3], seed=seed).image for seed, pose in enumerate(poses)]
    K = camera.K.astype(np.float64)
    truth = PosedPair("0", "1", K, K, poses[1] @ np.linalg.inv(poses[0]))
    usable = [entry["name"] for entry in report["matchers"] if not entry["needs"]]
    return try_matchers(usable, photos[0], photos[1], truth)


def _describe_trial(trial: Trial) -> str:
    if trial.failure:
        return f"{trial.matcher:<24}failed: {trial.failure}"
    layers = "" if trial.mean_layers is None else f", {trial.mean_layers:.0f} layers run"
    return (
        f"{trial.matcher:<24}{trial.num_matches} matches, {100 * trial.precision:.0f} % right, "
        f"{trial.seconds:.1f} s{layers}"
    )


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("doctor"), description=__doc__)
    parser.add_argument(
        "--all", action="store_true", help="all versions, every weights file with its licence, ..."
    )
    parser.add_argument(
        "--try", action="store_true", help="match two rendered photos with every usable matcher"
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; return the exit status."""
    options = Namespace(**build_parser().parse(arguments))

    def job() -> int:
        report = examine()
        tried = try_usable(report) if getattr(options, "try") else []
        if options.json:
            told = {"tried": [asdict(trial) for trial in tried]} if tried else {}
            print(json.dumps(report | told, indent=2))
            return 0
        print(describe(report) if options.all else summarize(report))
        if tried:
            print("Tried on two rendered photos of 640 x 480 pixels:")
            print("\n".join(f"  {_describe_trial(trial)}" for trial in tried))
        return 0

    return run_guarded(job)


if __name__ == "__main__":
    sys.exit(main())
