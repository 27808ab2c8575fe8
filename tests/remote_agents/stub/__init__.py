"""GPUs for processes of their own: a libnvidia-ml.so.1 that is compiled here, for LD_LIBRARY_PATH.

nvml_stub.c says what its GPUs do, and by which variables of the environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml_stub.c"
LIBRARY = "libnvidia-ml.so.1"
COMPILER = shutil.which("cc") or shutil.which("gcc")


def nvml_stub(folder: Path) -> Path:
    """Compile the library into a folder, once; returns the folder. Needs COMPILER."""
    library = folder / LIBRARY
    if not library.exists():
        assert COMPILER, "a C compiler is needed"
        new = folder / f"{LIBRARY}.{os.getpid()}"
        options = ["-O2", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
        subprocess.run([COMPILER, *options, "-o", new, SOURCE, "-lm"], check=True)
        new.rename(library)  # whole at once: other processes may be waiting for it
    return folder
