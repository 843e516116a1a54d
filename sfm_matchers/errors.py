"""The errors this package raises on purpose: one line each, saying what is wrong and what to do."""

from __future__ import annotations


class SfmMatchersError(Exception):
    """Base class of every error raised on purpose."""


class InputError(SfmMatchersError, ValueError):
    """A file, a folder, an option or an array given by the user cannot be used."""


class MissingExtraError(SfmMatchersError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""


class WeightsError(SfmMatchersError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another network."""
