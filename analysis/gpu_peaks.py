"""What GPUs can do at most, by the names that NVML gives them: data sheets, dense, without sparsity. No clock.

FLOP/s of matrix products in 16 and in 8 bits, bytes/s of memory. A name that is not here has no peaks, never a guess;
nor has a MIG device, whose name is its GPU's and more: it is a part of it.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Peaks(NamedTuple):
    """`flops_8`: None where products in 8 bits are no faster than those in 16."""

    flops_16: float
    flops_8: float | None
    bytes_per_s: float


# The first that is found in the name; the more special ones come first.
_PEAKS = (
    (r"GB300|B300", Peaks(2.5e15, 5.0e15, 8.0e12)),
    (r"GB200|B200", Peaks(2.25e15, 4.5e15, 8.0e12)),
    (r"GH200.*144G", Peaks(989e12, 1979e12, 4.9e12)),
    (r"GH200", Peaks(989e12, 1979e12, 4.0e12)),
    (r"H200", Peaks(989e12, 1979e12, 4.8e12)),
    (r"H100 NVL", Peaks(835e12, 1671e12, 3.9e12)),
    (r"H100 PCIe", Peaks(756e12, 1513e12, 2.0e12)),
    (r"H100|H800", Peaks(989e12, 1979e12, 3.35e12)),
    (r"H20\b", Peaks(148e12, 296e12, 4.0e12)),
    (r"A100.*80G.*PCIe|A100.*PCIe.*80G", Peaks(312e12, None, 1.935e12)),
    (r"A100.*80G|A800", Peaks(312e12, None, 2.039e12)),
    (r"A100", Peaks(312e12, None, 1.555e12)),
    (r"L40S", Peaks(362e12, 733e12, 864e9)),
    (r"L40\b", Peaks(181e12, 362e12, 864e9)),
    (r"L4\b", Peaks(121e12, 242e12, 300e9)),
    (r"A10G", Peaks(70e12, None, 600e9)),
    (r"A10\b", Peaks(125e12, None, 600e9)),
    (r"A30\b", Peaks(165e12, None, 933e9)),
    (r"V100", Peaks(125e12, None, 900e9)),
    (r"\bT4\b", Peaks(65e12, None, 320e9)),
    (r"RTX 5090", Peaks(209.5e12, 419e12, 1.792e12)),
    (r"RTX 4090", Peaks(165.2e12, 330.3e12, 1.008e12)),
    (r"RTX 3090", Peaks(71e12, None, 936e9)),
)


def peaks(name: str | None) -> Peaks | None:
    """None for a name that is not known."""
    if name is None or " MIG " in name:
        return None
    return next((found for pattern, found in _PEAKS if re.search(pattern, name)), None)
