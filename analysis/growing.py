"""A column that parts are appended to, with room ahead: what is not written to costs no memory.

Room is made by numpy, which asks for large pages: a column of a hundred megabytes is there with a few page faults.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST = 1 << 16


class Growing:
    def __init__(self, kind: type | str = np.float64) -> None:
        self._values: NDArray[Any] = np.empty(0, kind)
        self._size = 0

    def append(self, part: NDArray[Any]) -> None:
        size = self._size + part.size
        if size > self._values.size:
            larger = np.empty(max(_LEAST, 2 * size), self._values.dtype)
            larger[: self._size] = self._values[: self._size]
            self._values = larger
        self._values[self._size : size] = part
        self._size = size

    def taken(self) -> NDArray[Any]:
        """All parts; this is empty then."""
        values = self._values[: self._size]
        self._values, self._size = self._values[:0].copy(), 0
        return values
