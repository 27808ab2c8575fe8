"""What a GPU is: read once, and said in HELLO. Nothing here changes during a run but by someone's hand."""

import re
from pathlib import Path
from typing import Any, Dict, Optional

import pynvml

from remote_agents.agent.gpu_errors import fact
from remote_agents.agent.gpu_readings import Handle

# By NVML_DEVICE_ARCH_*, as numbers: an old pynvml does not know the newest.
ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
    13: "Rubin",
}
_GA100 = re.compile(r"\bA(100X?|800|30)\b")
_GA100_CAPABILITY = "8.0"


def facts(handle: Handle) -> Dict[str, Any]:
    """Fact -> value, None where it is not told."""
    bus_bits = fact("nvmlDeviceGetMemoryBusWidth", handle)
    mem_max_mhz = fact("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_MEM)
    architecture = fact("nvmlDeviceGetArchitecture", handle)
    capability = fact("nvmlDeviceGetCudaComputeCapability", handle)
    pci = fact("nvmlDeviceGetPciInfo", handle)
    bus_id = pci and pci.busId.lower()[-12:]  # as the kernel writes it, which has four digits of the domain
    return {
        "name": fact("nvmlDeviceGetName", handle),
        "architecture": ARCHITECTURES.get(architecture, None if architecture is None else f"number {architecture}"),
        "compute_capability": capability and "{}.{}".format(*capability),
        "cores": fact("nvmlDeviceGetNumGpuCores", handle),
        "sm_max_mhz": fact("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM),
        "mem_max_mhz": mem_max_mhz,
        "mem_total_b": getattr(fact("nvmlDeviceGetMemoryInfo", handle), "total", None),
        "mem_bus_bits": bus_bits,
        "dram_peak_b_s": bus_bits and mem_max_mhz and 2 * mem_max_mhz * 1_000_000 * bus_bits // 8,  # two bits a clock
        "bar1_total_b": getattr(fact("nvmlDeviceGetBAR1MemoryInfo", handle), "bar1Total", None),
        "pcie_gen": fact("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pcie_gen_max": fact("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        "pcie_width": fact("nvmlDeviceGetCurrPcieLinkWidth", handle),
        "pcie_width_max": fact("nvmlDeviceGetMaxPcieLinkWidth", handle),
        "pci_bus_id": bus_id,
        "numa_node": _numa_node(bus_id),
        "ecc_mode": fact("nvmlDeviceGetCurrentEccMode", handle),
        "persistence_mode": fact("nvmlDeviceGetPersistenceMode", handle),
        "mig_mode": mig_mode(handle),
    }


def mig_mode(handle: Handle) -> Optional[int]:
    """1 when MIG is on; None where there is no such thing, or no answer."""
    modes = fact("nvmlDeviceGetMigMode", handle)
    return None if modes is None else int(modes[0])


def _numa_node(bus_id: Optional[str]) -> Optional[int]:
    """The memory of the host that is near to it; NVML's own answer is the GPU's memory, where that is a node."""
    try:
        node = int(Path(f"/sys/bus/pci/devices/{bus_id}/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None  # -1: the host has but one


def power_means(way: Optional[str], known: Dict[str, Any]) -> Optional[str]:
    """What power_mw is, by the way that it is read in and what the GPU is. nvmlDeviceGetPowerUsage: its reference."""
    if way is None or way == "field 186":
        return way and "instant (field 186)"
    architecture, capability, name = known["architecture"], known["compute_capability"], known["name"]
    if architecture is None:
        return "unknown (nvmlDeviceGetPowerUsage, and the architecture is not told)"
    if architecture in ("Kepler", "Maxwell", "Pascal", "Volta", "Turing") or (
        capability == _GA100_CAPABILITY or (capability is None and _GA100.search(name or ""))
    ):
        return "instant (nvmlDeviceGetPowerUsage on GA100, or older than Ampere)"
    return "mean of 1 s (nvmlDeviceGetPowerUsage on Ampere, not GA100, and later)"
