"""Documents say what the code does: exit codes, traps, targets, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadgen.errors import EXIT_CODES
from tests.conftest import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")]


def test_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


def test_every_trap_of_locust_is_listed() -> None:
    traps = re.findall(r"\bT(\d+)\b", (ROOT / "docs" / "locust.md").read_text())
    assert sorted({int(trap) for trap in traps}) == list(range(1, 39))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_targets_exist(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^ {4}|`)make ([a-z][a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
