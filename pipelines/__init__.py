"""The command lines: each calls the steps of `sfm_matchers` in order and says what was made."""

import sys

import sfm_matchers  # noqa: F401  (before pycolmap, see there)

if sys.argv[0] == "-m":  # while the module of ``python -m pipelines.X`` is looked for
    from pipelines.command import prepare_process

    prepare_process()
