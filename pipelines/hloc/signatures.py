"""A command line from the signature of a function: its keywords are the options.

Required keywords are required options, defaults are defaults, ``Args:`` of the docstring is the
help. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipelines.options import add_executor_options
from sfm_matchers.errors import EMPTY_PATH, InputError
from sfm_matchers.hloc.steps.executors import ExecutorOptions


def add_options(
    parser: argparse.ArgumentParser, function: Callable[..., Any], aliases: Mapping[str, str]
) -> None:
    """Add the keywords of a function to a parser.

    Args:
        parser: of the function.
        function: its keywords are paths, strings, numbers, switches, choices (``Literal``),
            sequences, mappings (``KEY=VALUE``), or `ExecutorOptions`.
        aliases: option -> another name of it.
    """
    helps = _helps(function)
    types = _types(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if types[name] is ExecutorOptions:
            add_executor_options(parser.add_argument, shards=True)
            continue
        options = _argument(types[name], parameter, helps.get(name, ""))
        flags = [f"--{flag}" for flag in (name, aliases.get(name)) if flag]
        parser.add_argument(*flags, **options)


def keywords_of(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was given on the command line as keywords of the function.

    Raises:
        InputError: a ``KEY=VALUE`` has no value.
    """
    keywords: dict[str, Any] = {}
    for name, kind in _types(function).items():
        if kind is ExecutorOptions:
            names = [field.name for field in fields(ExecutorOptions)]
            keywords[name] = ExecutorOptions(**{key: given[key] for key in names})
        elif get_origin(kind) is Mapping:
            keywords[name] = dict(map(_key_value, given[name]))
        else:
            keywords[name] = given[name]
    return keywords


def _types(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> its type, None left out; what is returned may be of a library not loaded yet."""
    annotations = {k: v for k, v in function.__annotations__.items() if k != "return"}
    holder = SimpleNamespace(__annotations__=annotations)
    hints = get_type_hints(holder, globalns=function.__globals__)
    return {name: _without_none(kind) for name, kind in hints.items()}


def _without_none(kind: Any) -> Any:
    """The type itself, of ``X | None`` X, of ``str | Path`` text that is not empty."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    kinds = [one for one in get_args(kind) if one is not NoneType]
    return _path if set(kinds) == {str, Path} else kinds[0]


def _path(text: str) -> str:
    """The text itself: some steps take a name in place of a path."""
    if not text:
        raise argparse.ArgumentTypeError(EMPTY_PATH)
    return text


def _argument(kind: Any, parameter: inspect.Parameter, text: str) -> dict[str, Any]:
    """The keywords of ``add_argument`` for a parameter."""
    default = parameter.default
    is_required = default is inspect.Parameter.empty
    options: dict[str, Any] = {"required": True} if is_required else {"default": default}
    if kind is bool:
        return {"action": "store_true", "help": text}
    if not is_required and default is not None and default != () and default != {}:
        text = f"{text} (default: {default})".strip()
    options["help"] = text.replace("%", "%%")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {**options, "choices": arguments}
    if origin is Mapping:
        return {**options, "nargs": "+", "metavar": "KEY=VALUE", "default": []}
    if origin is Sequence:
        return {**options, "nargs": "+", "type": _without_none(arguments[0])}
    return {**options, "type": kind}


def _helps(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> what ``Args:`` of the docstring says."""
    section = re.search(r"^Args:\n((?:    .*\n?)+)", inspect.getdoc(function) or "", flags=re.M)
    entries = re.findall(
        r"^    (\w+): (.*(?:\n     .*)*)", section.group(1) if section else "", flags=re.M
    )
    return {name: " ".join(text.split()).rstrip(".") for name, text in entries}


def _key_value(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not value:
        raise InputError(f"expected key=value, found {text!r}")
    return key, value
