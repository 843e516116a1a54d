"""Options that several command lines have, and what they mean. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfm_matchers.choices import RETRIEVALS
from sfm_matchers.confs import conf_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


Add = Callable[..., Any]
"""A parser's ``add_argument``."""


def take_defaults(parser: argparse.ArgumentParser, options: type[DataclassInstance]) -> None:
    """Give a parser's options the defaults of the dataclass they become."""
    named = {field.name: field.default for field in fields(options)}
    parser.set_defaults(**{k: value for k, value in named.items() if value is not MISSING})


def add_matching_options(add: Add, *, shards: bool = False, auto: str = "") -> None:
    """Add ``--matcher``, ``--weights`` and ``--device``, and which processes match.

    Args:
        add: the parser's.
        shards: the command can do a part of its work.
        auto: what the command does with ``--matcher auto``; "" if it has no such choice.
    """
    choices = ([f"auto ({auto})"] if auto else []) + conf_names()
    add(
        "--matcher",
        help=f"one of {', '.join(choices)}, or a conf file .yaml (default: %(default)s)",
    )
    add(
        "--weights",
        help="bundled, official or lightglue (downloaded), or a checkpoint file "
        "(default: %(default)s)",
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")
    add_executor_options(add, shards=shards)


def add_retrieval_options(add: Add, what: str) -> None:
    """Add ``--num_loc``, ``--retrieval`` and ``--ransac_thresh``.

    Args:
        add: the parser's.
        what: each query is matched with.
    """
    add(
        "--num_loc",
        type=int,
        help=f"{what} that each query is matched with (default: %(default)s)",
    )
    add(
        "--retrieval",
        choices=RETRIEVALS,
        help="how they are found: vlad needs no download, the others need hloc "
        "(default: %(default)s)",
    )
    add(
        "--ransac_thresh",
        type=float,
        help="largest reprojection error of an inlier in pixels (default: %(default)s)",
    )


def add_map_options(add: Add) -> None:
    """Add ``--num_covis`` and ``--loc_pairs``; `add` is the parser's."""
    add(
        "--num_covis",
        type=int,
        help="photos of the map that each is matched with (default: %(default)s)",
    )
    add("--loc_pairs", type=Path, help="file of pairs 'query map-photo' instead of retrieval")


def add_executor_options(add: Add, *, shards: bool = False) -> None:
    """Add ``--workers`` and ``--ray`` to a command line, and ``--shard`` and ``--merge``.

    Args:
        add: the parser's ``add_argument``.
        shards: the command can do a part of its work.
    """
    add(
        "--workers",
        type=int,
        help="processes that match, each with its part of the CPU's cores or a GPU of its own; "
        "with --ray, its workers (default: this process only; with --ray, one a core or GPU)",
    )
    add(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="match on a Ray cluster: its address, none for the one that runs here, or local to "
        "start one on this machine. All machines need the photos and the outputs at one path "
        "(needs the extra ray)",
    )
    if shards:
        add(
            "--shard",
            metavar="I/N",
            help="match only the I-th of N parts, then stop: for the array jobs of a batch system",
        )
        add(
            "--merge",
            action="store_true",
            help="go on after all shards are done; an error if pairs are missing",
        )
