"""The table of pair policies."""

from __future__ import annotations

from sfm_matchers import choices
from sfm_matchers.runs.pairs import POLICIES


def test_the_table_holds_what_the_command_line_names() -> None:
    assert tuple(POLICIES) == choices.POLICIES
