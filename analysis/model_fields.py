"""Whole numbers of a model's config.json, of one kind of model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Fields:
    """Null is absent."""

    def __init__(self, fields: Mapping[str, Any], kind: str) -> None:
        self.all = fields
        self.kind = kind

    def need(self, name: str) -> int:
        value = self.get(name, 0)
        if not value:
            raise ValueError(f"has no {name}")
        return value

    def get(self, name: str, default: int) -> int:
        value = self.all.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
            raise ValueError(f"has {name} {value!r}, which is no count")
        return value

    def first(self, *names: str) -> int:
        return next((value for name in names if (value := self.get(name, 0))), 0)
