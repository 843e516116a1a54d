"""The command `hloc`: hloc's steps as typed functions, and a command line made from them.

    >>> from pipelines.hloc.matching import extract_features    # doctest: +SKIP
    >>> extract_features(image_dir="photos", export_dir="outputs", conf="sift")    # doctest: +SKIP

`matching`, `pairs` and `models` hold the steps. To import this package loads nothing heavy.
"""

from pipelines.hloc.command import build_parser, main

__all__ = ["build_parser", "main"]
