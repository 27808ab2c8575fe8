"""Peers, each in the best plain way of using it; what installs apart has a virtual environment of its own.

The scripts beside this file run in the peer's interpreter and import nothing of ours. They write a CSV line a request:
id, sent, first token, last token, end (CLOCK_REALTIME ns, by their own clock at the read, as all peers do), tokens, ok.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {"aiohttp": ("aiohttp", "uvloop"), "guidellm": ("guidellm",), "aiperf": ("aiperf",)}
_HOME = Path(sys.prefix) / "peers"


class NotInstalled(Exception):
    """One sentence."""


def environment(peer: str) -> Path:
    """The folder of its commands; made and filled from the registry when it is not there. Raises NotInstalled."""
    folder = _HOME / peer
    installed = folder / ".installed"
    if not installed.exists():
        print(f"installing {peer} into {folder} …", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *PACKAGES[peer]], capture_output=True, text=True)
        if done.returncode:
            raise NotInstalled(f"{peer} cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        installed.touch()
    return folder / "bin"


def versions() -> dict[str, str]:
    """Of the packages of every peer that is installed, as its own interpreter knows them."""
    code = "import importlib.metadata, sys; print(*map(importlib.metadata.version, sys.argv[1:]))"
    found: dict[str, str] = {}
    for peer, packages in PACKAGES.items():
        if (_HOME / peer / ".installed").exists():
            command = [str(_HOME / peer / "bin/python"), "-c", code, *packages]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found |= dict(zip(packages, done.stdout.split(), strict=True))
    return found
