"""The command `hloc`: the steps of `sfm_matchers.hloc.steps`, and a command line made from them."""

from pipelines.hloc.command import build_parser, main

__all__ = ["build_parser", "main"]
