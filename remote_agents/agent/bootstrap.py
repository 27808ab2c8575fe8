"""The first code of ours on an inference host, fed to `python -c` through stdin: imports the agent from memory.

stdin: the length of a zip archive in eight digits, the archive, then what the agent itself reads. Nothing is written.
It is executed as text, and must import nothing of ours.
"""

import importlib.abc
import importlib.util
import io
import os
import sys
import zipfile
from importlib.machinery import ModuleSpec
from typing import Any, Optional


def read(size: int) -> bytes:
    """Exactly `size` bytes of stdin: what follows is the agent's."""
    parts = []
    while size:
        part = os.read(0, size)
        if not part:
            sys.exit("the agent did not arrive whole")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class FromArchive(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Modules and packages whose sources are in an archive that is in memory."""

    def __init__(self, archive: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            self.sources = {name: files.read(name).decode() for name in files.namelist()}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Optional[ModuleSpec]:
        if not self.path(fullname):
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=self.is_package(fullname))

    def path(self, fullname: str) -> str:
        stem = fullname.replace(".", "/")
        return next((path for path in (stem + ".py", stem + "/__init__.py") if path in self.sources), "")

    def is_package(self, fullname: str) -> bool:
        return self.path(fullname).endswith("/__init__.py")

    def get_source(self, fullname: str) -> str:
        return self.sources[self.path(fullname)]


sys.meta_path.insert(0, FromArchive(read(int(read(8)))))
from remote_agents.agent.__main__ import main  # noqa: E402  # it is in the archive

main()
