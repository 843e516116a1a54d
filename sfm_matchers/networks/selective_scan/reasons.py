"""Why a backend of the selective scan cannot run."""


class NotInstalled(str):
    """A library is missing; the text says how to install it."""

    __slots__ = ()
