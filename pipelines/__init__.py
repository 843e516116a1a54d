"""The command lines: each calls the steps of `sfm_matchers` in order and says what was made."""

import sfm_matchers  # noqa: F401  (before pycolmap, see there)
