"""How every command line reads its options, and those that several have. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sfm_matchers
from pipelines.command import answer, set_up_log
from sfm_matchers.choices import RETRIEVALS
from sfm_matchers.errors import EMPTY_PATH, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PROGRAM = "sfm-matchers"

# Names that users of COLMAP, hloc and splat tools type for one thing. A command has one of each
# group, and takes the others for it.
SPELLINGS = (
    ("--image_dir", "--photo_dir", "--image_path", "--images", "--photos", "--video"),
    ("--outputs", "--output", "--output_path", "--output_dir", "--out"),
)


class Parser(argparse.ArgumentParser):
    """A command line: any usual spelling of its options, and mistakes answered in two lines.

    Each has ``--quiet``, ``--verbose`` and ``--version``, and so have its subcommands; an option
    of a command's own of such a name replaces it.
    """

    def __init__(self, description: str | None = None, **options: Any) -> None:
        if description and is_called_by_name():  # what is shown can be copied
            description = description.replace("python -m pipelines.", f"{PROGRAM} ")
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            conflict_handler="resolve",
            **options,
        )
        common, absent = self.add_argument_group("of every command"), argparse.SUPPRESS
        for name, text in (
            ("quiet", "say nothing but warnings: what came out is in the files"),
            ("verbose", "say more, COLMAP's log too"),
        ):
            common.add_argument(f"--{name}", action="store_true", default=absent, help=text)
        common.add_argument("--version", action="version", version=version())

    def parse(
        self, arguments: Sequence[str] | None = None, *, times: bool = False
    ) -> dict[str, Any]:
        """Return the values of the options by name, and set how much is said.

        Args:
            arguments: those of the process if None.
            times: each line of the log has the time.
        """
        values = vars(self.parse_args(arguments))
        quiet, verbose = values.pop("quiet", False), values.pop("verbose", False)
        set_up_log(quiet=quiet, verbose=verbose, times=times)
        return values

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As of argparse; here an unknown option is an error, answered with the nearest one."""
        given = self._spelled(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # before others are missed
            self._refuse(word for word in given if self._is_unknown(word))
        parsed, unknown = super().parse_known_args(given, namespace)
        self._refuse(unknown)
        return parsed, unknown

    def _is_unknown(self, word: str) -> bool:
        name = word.partition("=")[0]
        is_option = len(name) > 2 and name.startswith("--") and " " not in word
        return is_option and not any(
            known.startswith(name) for known in self._option_string_actions
        )

    def _refuse(self, words: Iterable[str]) -> None:
        """End with an error where there is an unknown word, which names the nearest option."""
        for word in words:
            name = word.partition("=")[0]
            is_option = name.startswith("-")
            hint = ": quote a path with spaces, write a list with commas"
            if is_option:
                hint = did_you_mean(name, self._option_string_actions)
            self.error(f"unknown {'option' if is_option else 'argument'} {name}{hint}")

    def _spelled(self, arguments: Sequence[str]) -> list[str]:
        """``--image-dir`` is ``--image_dir``; so is ``--images`` where there is no such option."""
        known, done = self._option_string_actions, []
        steps = self._commands()
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if name.startswith("--"):
                name = "--" + name[2:].replace("-", "_")
                if name not in known:
                    group = next((group for group in SPELLINGS if name in group), ())
                    name = next((other for other in group if other in known), name)
            elif steps and not name.startswith("-"):  # the command; what follows is its own
                named = name.lower().replace("-", "_")
                name, steps = named if named in steps else name, ()
            done.append(name + equals + value)
        return done

    def _commands(self) -> Collection[str]:
        if self._subparsers is None:
            return ()
        actions = self._subparsers._group_actions
        return [str(name) for action in actions for name in action.choices or ()]

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As of argparse; an empty path, which `pathlib` takes for the folder at hand, is none."""
        if action.type is Path and not arg_string:
            raise argparse.ArgumentError(action, EMPTY_PATH)
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As of argparse; the nearest choice is named."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def _print_message(self, message: str, file: Any = None) -> None:
        """As of argparse, for which help that cannot be written is no error."""
        if file is sys.stderr:
            super()._print_message(message, file)
        elif status := answer(message):
            raise SystemExit(status)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is, in two lines; ends with status 2."""
        print(f"error: {message}\nhelp: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``: did you mean X?`` where a known name is near, or nothing."""
    meant = nearest(name, known)
    return f": did you mean {meant}?" if meant else ""


def program(name: str) -> str:
    """Return how a command is called in the way in which this process was."""
    return f"{PROGRAM} {name}" if is_called_by_name() else f"python -m pipelines.{name}"


def is_called_by_name() -> bool:
    """Return whether this process was called as `PROGRAM`, not as a module of the pipelines."""
    called = Path(sys.argv[0])
    return PROGRAM in called.name or called.parent.name == "sfm_matchers"


def version() -> str:
    """Return name and version of this package."""
    return f"{PROGRAM} {sfm_matchers.__version__}"


def matcher_name(text: str) -> str:
    """Return the name of a matcher, typed in any case; files keep theirs."""
    from sfm_matchers.confs import conf_names

    is_known = text.lower() in ("auto", *conf_names())
    return text.lower() if is_known else text


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
    from sfm_matchers.confs import conf_names

    choices = ([f"auto ({auto})"] if auto else []) + conf_names()
    add(
        "--matcher",
        type=matcher_name,
        help=f"one of {', '.join(choices)}, or a conf file .yaml (default: %(default)s)",
    )
    add(
        "--weights",
        help="bundled, official or lightglue (downloaded), or a checkpoint file "
        "(default: %(default)s)",
    )
    add_device_option(add)
    add_executor_options(add, shards=shards)


def add_device_option(add: Add, **settings: Any) -> None:
    """Add ``--device``."""
    text = "auto, cpu, mps, cuda, or cuda:1 for the second GPU (default: %(default)s)"
    add("--device", type=device_name, help=text, **settings)


def device_name(text: str) -> str:
    """Return the name of a device as torch has it, in letters of any case."""
    name = text.lower()
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, mps, cuda, cuda:N")
    return name


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
        metavar="KIND|FILE.h5",
        help="how they are found: vlad needs no download; a file of global descriptors of all "
        f"photos, as hloc writes it; {', '.join(RETRIEVALS[1:])} need hloc (default: %(default)s)",
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
