"""The command `sfm-matchers`: all command lines of this package under one name.

Streams, signals and exit codes are in `command.py`, how options are read in `options.py`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from pipelines.command import BAD_INPUT, answer, prepare_process
from pipelines.options import PROGRAM, did_you_mean, version

COMMANDS = {
    "sfm": "photos to a COLMAP model",
    "localize": "poses of new photos in a map",
    "map": "a map in one folder, ready for new photos",
    "serve": "a map as an HTTP service",
    "refine": "longer tracks for a COLMAP model of any origin",
    "export": "a model for other tools; a matcher as ONNX file",
    "hloc": "hloc's steps, with its names and files",
    "aachen": "the benchmark Aachen Day-Night, to its submission file",
    "inloc": "the benchmark InLoc, to its submission file",
    "evaluate": "a matcher on pairs with known truth; poses against the truth",
    "train": "train a network on photographs",
    "pack_weights": "a file of weights to ship, of what a training has written",
    "demo": "a rendered place, from photos to the exact truth",
    "doctor": "what this machine can do",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return its exit status.

    0: done; 1: nothing came out; 2: bad input; 130, 141, 143: see `command.run_guarded`.
    """
    if arguments is None:
        prepare_process()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["help"] and len(given) > 1:
        given = [given[1], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        return answer(f"{_help()}\n", 0 if given else BAD_INPUT)
    if given[0] in ("--version", "-V"):
        return answer(f"{version()}\n")
    name = given[0].lower().replace("-", "_")
    if name not in COMMANDS:
        known = ("--version", "--help") if given[0].startswith("-") else tuple(COMMANDS)
        hint = did_you_mean(given[0], known)
        print(f"error: unknown command {given[0]}{hint}\nhelp: {PROGRAM} --help", file=sys.stderr)
        return BAD_INPUT
    return int(importlib.import_module(f"pipelines.{name}").main(given[1:]))


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [OPTIONS]\n\nPhotographs to maps, with newer matchers.\n\n"
        f"{commands}\n\n{PROGRAM} COMMAND --help shows its options; --version the version."
    )


if __name__ == "__main__":
    sys.exit(main())
