"""What command lines that write to a folder have in common."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.command import run_guarded
from sfm_matchers.errors import (
    OutputError,
    PhotoChangedError,
    SfmMatchersError,
    one_line,
)
from sfm_matchers.files.locks import exclusive
from sfm_matchers.files.space import GOES_ON, is_of_full_disk
from sfm_matchers.localization.poses import (
    LocalizedQuery,
    Status,
    count_by_status,
    intrinsics_by_source,
)

logger = logging.getLogger("sfm_matchers.pipelines")


MAX_BEGINNINGS = 3  # of a run whose photos change while it works


def run_command(outputs: Path, job: Callable[[], int], shard: str | None = None) -> int:
    """Run a command line that writes to `outputs`, alone there.

    Args:
        outputs: the folder.
        job: the work. It is begun again, and resumes, where photos change in the meantime.
        shard: which part of the matching this run does, beside other runs.

    Returns:
        See `run_guarded`.
    """
    # On large photos and damaged EXIF; what cannot be used is said by `open_photo`.
    warnings.filterwarnings("ignore", module="PIL")

    def alone() -> int:
        with exclusive(outputs, shard):
            for _ in range(MAX_BEGINNINGS - 1):
                try:
                    return job()
                except PhotoChangedError as error:
                    logger.warning("%s. Beginning again with the photos as they are now", error)
            return job()

    def within_the_disk() -> int:
        temporary = Path(tempfile.gettempdir())
        try:
            return alone()
        except SfmMatchersError:
            raise
        except Exception as error:  # libraries fail in any way on a full disk
            if not is_of_full_disk(error, outputs, temporary):
                raise
            raise OutputError(
                f"no space is left for {outputs} or for temporary files in {temporary} "
                f"({one_line(error)}). {GOES_ON}"
            ) from error

    return run_guarded(within_the_disk)


def print_localization(
    results: Sequence[LocalizedQuery],
    conditions: Mapping[str, Callable[[str], bool]],
    files: Mapping[str, Path],
    seconds: Mapping[str, float],
) -> None:
    """Print the counts by status, for each condition and all; where each file is; the seconds.

    Args:
        results: of all queries.
        conditions: name of a condition -> whether a query, by name, is of it.
        files: what it is -> where it is.
        seconds: step -> seconds.
    """
    rows = {
        condition: [result for result in results if belongs(result.name)]
        for condition, belongs in conditions.items()
    }
    if len(rows) != 1:
        rows["all queries"] = list(results)
    for condition, chosen in rows.items():
        counts = ", ".join(f"{count} {status}" for status, count in count_by_status(chosen).items())
        posed = [r for r in chosen if r.status in (Status.LOCALIZED, Status.LOW_CONFIDENCE)]
        inliers = (
            f"; median inliers {np.median([r.num_inliers for r in posed]):.0f}" if posed else ""
        )
        print(f"{condition}: {len(chosen)} queries: {counts}{inliers}")
    for line in intrinsics_by_source(results):
        print(f"intrinsics: {line}")
    for name, path in files.items():
        print(f"{name}: {path}")
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
