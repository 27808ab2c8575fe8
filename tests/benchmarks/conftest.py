"""The reference server, compiled once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import reference


@pytest.fixture(scope="session")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> reference.Binaries:
    try:
        return reference.build(tmp_path_factory.mktemp("reference"))
    except reference.BuildError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> reference.Certificate:
    return reference.self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def serving(binaries: reference.Binaries, tmp_path: Path) -> Callable[..., reference.Server]:
    """Starts a reference server with the options given, and with a log."""

    def start(*options: str | float, tls: reference.Certificate | None = None) -> reference.Server:
        return reference.Server(binaries.server, tmp_path / "log.csv", *options, tls=tls)

    return start
