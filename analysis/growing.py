"""A column that parts are appended to in place: a large one moves to no other memory, and leaves no gaps behind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Growing:
    def __init__(self, kind: type | str = np.float64) -> None:
        self._values: NDArray[Any] = np.zeros(0, kind)

    def append(self, part: NDArray[Any]) -> None:
        size = self._values.size
        self._values.resize(size + part.size, refcheck=False)  # nobody else has it
        self._values[size:] = part

    def taken(self) -> NDArray[Any]:
        """All parts; this is empty then."""
        values, self._values = self._values, self._values[:0].copy()
        return values
