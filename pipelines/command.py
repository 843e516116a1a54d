"""How every command line ends. Imports nothing heavy."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from sfm_matchers.errors import SfmMatchersError


def run_guarded(job: Callable[[], int]) -> int:
    """Run a command line; its log goes to stderr.

    Returns:
        What `job` returns; 2 after bad input, said in one line; 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return job()
    except SfmMatchersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
