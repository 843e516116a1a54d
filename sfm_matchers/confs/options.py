"""Options by name, checked against what takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sfm_matchers.errors import InputError, about, nearest, one_line

Made = TypeVar("Made")


def check_keys(given: Iterable[str], allowed: Iterable[str], where: str) -> None:
    """Raise InputError, with a suggestion, at the first key that is not allowed."""
    allowed = list(allowed)
    for key in given:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {key!r}{suggestion(key, allowed)}")


def check_options(
    factory: Callable[..., Any], options: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Return options as keywords of `factory`, each of the type that its default has.

    Raises:
        InputError: it takes no such option, or one is of another type.
    """
    parameters = inspect.signature(factory).parameters
    check_keys(options, parameters, where)
    checked = {}
    for key, value in options.items():
        default = parameters[key].default
        expected, description = _type_like(default)
        is_of_type = isinstance(value, expected) and isinstance(value, bool) == (
            isinstance(default, bool) or (expected is object and isinstance(value, bool))
        )
        if isinstance(default, tuple) and is_of_type:
            is_of_type = len(value) == len(default) and all(type(side) is int for side in value)
            value = tuple(value)
        if not is_of_type:
            raise InputError(f"{where}: {key!r} must be {description}, found {value!r}")
        checked[key] = value
    return checked


def _type_like(default: Any) -> tuple[Any, str]:
    """The type of values that may replace a default, and what to call it."""
    if isinstance(default, bool):
        return bool, "true or false"
    if isinstance(default, int):
        return int, "a whole number"
    if isinstance(default, float):
        return int | float, "a number"
    if isinstance(default, str):
        return str, "text"
    if isinstance(default, tuple):
        return list | tuple, f"{len(default)} whole numbers"
    if default is None:
        return int | float | None, "a number, or null"
    return object, "given"


def build(factory: Callable[..., Made], options: Mapping[str, Any], where: str) -> Made:
    """Call `factory` with options from a conf.

    Raises:
        InputError: it takes no such option, or not this value of it.
    """
    checked = check_options(factory, options, where)
    try:
        with about(where):
            return factory(**checked)
    except (TypeError, OverflowError) as error:
        raise InputError(f"{where}: {one_line(error)}") from error


def suggestion(key: str, allowed: Iterable[str]) -> str:
    """Return the end of an error message: which key was probably meant, or which there are."""
    allowed = list(allowed)
    if meant := nearest(str(key), allowed):
        return f": did you mean {meant!r}?"
    return f", expected one of {', '.join(allowed)}"
