"""Shared by all tests: the project's root, and the `loadgen` command of this environment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def loadgen() -> str:
    """Path of the `loadgen` command."""
    return str(Path(sys.executable).with_name("loadgen"))
