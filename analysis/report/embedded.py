"""Figures inside a page: as data URLs, twice as fine as a screen needs them."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

from matplotlib.figure import Figure

_DPI = 200  # twice what a page of this width shows


class Picture(NamedTuple):
    """`source` is a data URL."""

    name: str
    caption: str
    source: str


def embed(figure: Figure) -> str:
    """The data URL of a figure, as PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI, metadata={"Software": None})
    return data_url(data.getvalue(), "png")


def data_url(image: bytes, kind: str) -> str:
    """`kind` is "png" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
