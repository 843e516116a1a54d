"""What a reconstruction prints and shows: lines about the model, the settings, the seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pycolmap

from sfm_matchers.runs.findings import Findings
from sfm_matchers.runs.matching import MatchingJob


@dataclass(frozen=True)
class Settings:
    """What was decided for a run.

    Attributes:
        matcher: what matched.
        weights: of it.
        pairs: how many, and who chose them.
        cameras: which photos share one, and why.
        mapper: which one.
        camera_models: chosen after mapping; "" where none was looked for.
    """

    matcher: str
    weights: str
    pairs: str
    cameras: str
    mapper: str
    camera_models: str = ""

    def lines(self) -> dict[str, str]:
        """Return them by what they are called."""
        lines = {name.replace("_", " "): value for name, value in vars(self).items()}
        return {name: value for name, value in lines.items() if value or name != "camera models"}


def summarize(
    job: MatchingJob,
    models: Sequence[pycolmap.Reconstruction],
    findings: Findings,
    details: Mapping[str, str],
    settings: Settings,
) -> dict[str, Any]:
    """Return the lines of the printed summary.

    Args:
        job: of the run.
        models: the largest first.
        findings: on the models.
        details: further lines; those that are "" are left out.
        settings: of the run.
    """
    verdict, reason = findings.verdict, findings.explanation.reason
    summary: dict[str, Any] = {"model": "none"}
    if models:
        model = models[0]
        summary = {
            "model": str(job.workspace.model),
            "registered images": f"{model.num_reg_images()} of {len(job.photos)}",
            "points": model.num_points3D(),
            "mean track length": round(model.compute_mean_track_length(), 3),
            "mean reprojection error": f"{model.compute_mean_reprojection_error():.3f} px",
        }
        if len(models) > 1:
            sizes = ", ".join(str(model.num_reg_images()) for model in models[1:])
            summary["further models"] = f"{len(models) - 1}, of {sizes} images"
    if reason:
        summary["reason"] = reason
    if job.left_out:
        more = f"; ... {len(job.left_out) - 4} more" if len(job.left_out) > 4 else ""
        summary["left out"] = "; ".join(job.left_out[:4]) + more
    summary |= {"verdict": verdict.text, "verdict_level": verdict.level}
    further = {**details, **findings.match_graph}
    summary |= {name: line for name, line in further.items() if line}
    summary["settings"] = settings.lines()
    summary["seconds"] = {name: round(value, 1) for name, value in job.workspace.seconds.items()}
    return summary
