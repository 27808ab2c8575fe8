"""GPU figures of a dcgm-exporter that runs on this host anyway -> table `dcgm`, asked for once a second.

It collects every 30 s unless told otherwise, so a row goes out when a figure of that GPU has changed, or after 30 s:
the figures are those of some instant since the row before. MIG devices carry the UUID of their GPU, and are left out.
The XID gauge shows the last error for ever: a change is an event, and the same error once more cannot be seen. Stamps
are CLOCK_MONOTONIC ns: before the request, and when the answer began.
"""

import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from remote_agents.agent.outbox import Outbox
from remote_agents.agent.pace import SLOW_NS, Pace
from remote_agents.agent.prometheus import Page, Reader, Source, count_series, samples
from remote_agents.agent.sample import TABLES

REPEAT_NS = 30_000_000_000
KIND = "dcgm"
XID = "DCGM_FI_DEV_XID_ERRORS"
BLANK = 1 << 47  # DCGM's numbers for "no value" begin here
_REMEDY = "say where dcgm-exporter is with --dcgm-url, it is http://HOST:9400/metrics by default"
_KEY_REMEDY = "let it answer this host without one"

# series -> column, and what its unit is multiplied by
FIELDS: Dict[str, Tuple[str, float]] = {
    "DCGM_FI_DEV_GPU_UTIL": ("util_pct", 1),
    "DCGM_FI_PROF_SM_ACTIVE": ("sm_active_pct", 100),
    "DCGM_FI_PROF_SM_OCCUPANCY": ("sm_occ_pct", 100),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("tensor_pct", 100),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("dram_pct", 100),
    "DCGM_FI_DEV_FB_USED": ("mem_used_b", 1 << 20),
    "DCGM_FI_DEV_POWER_USAGE": ("power_mw", 1000),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("energy_mj", 1),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_mhz", 1),
    "DCGM_FI_DEV_GPU_TEMP": ("temp_c", 1),
}
_WANTED = {*FIELDS, XID}


class Gpu(NamedTuple):
    number: Optional[int]
    values: Dict[str, float]  # by column
    xid: Optional[int]


def read_gpus(text: str) -> Tuple[Dict[str, Gpu], bool]:
    """UUID -> its figures, and whether there are MIG devices on the page. Raises ValueError."""
    gpus: Dict[str, Gpu] = {}
    mig = False
    for name, labels, value in samples(text, _WANTED):
        if labels.get("GPU_I_ID"):
            mig = True
            continue
        uuid = labels.get("UUID")
        if uuid is None or value >= BLANK:
            continue
        index = labels.get("gpu", "")
        gpu = gpus.setdefault(uuid, Gpu(int(index) if index.isdigit() else None, {}, None))
        if name == XID:
            gpus[uuid] = gpu._replace(xid=int(value))
        else:
            column, scale = FIELDS[name]
            gpu.values[column] = value * scale
    return {uuid: gpu for uuid, gpu in gpus.items() if gpu.values}, mig


class Changes:
    """What was sent of each GPU, and when."""

    def __init__(self) -> None:
        self._sent: Dict[str, Tuple[int, Dict[str, float]]] = {}
        self._xids: Dict[str, Optional[int]] = {}

    def rows(self, gpus: Dict[str, Gpu], page: Page) -> List[List[Any]]:
        """Rows of table `dcgm` for the GPUs that have something new."""
        table = []
        for uuid, gpu in gpus.items():
            sent_ns, values = self._sent.get(uuid, (0, None))
            if gpu.values != values or page.t1_ns - sent_ns >= REPEAT_NS:
                self._sent[uuid] = (page.t1_ns, gpu.values)
                table.append(_row(uuid, gpu, page))
        return table

    def xids(self, gpus: Dict[str, Gpu]) -> Dict[str, int]:
        """UUID -> number of the error that a GPU has had since the last page; what the first page shows is older."""
        found = {}
        for uuid, gpu in gpus.items():
            if gpu.xid and gpu.xid != self._xids.get(uuid, gpu.xid):
                found[uuid] = gpu.xid
            self._xids[uuid] = gpu.xid
        return found


def _row(uuid: str, gpu: Gpu, page: Page) -> List[Any]:
    stamps = {"t0_mono_ns": page.t0_ns, "t1_mono_ns": page.t1_ns, "render_us": page.took_us}
    row: Dict[str, Any] = dict(gpu.values, gpu_uuid=uuid, gpu_index=gpu.number, **stamps)
    cells = [(row.get(column.name), column.type) for column in TABLES["dcgm"]]
    return [round(cell) if kind.startswith("int") and cell is not None else cell for cell, kind in cells]


def scrape(url: str, outbox: Outbox, period_ns: int = SLOW_NS) -> None:
    """Thread body, never returns."""
    reader = Reader(Source(url, None, KIND, "figures of dcgm-exporter", _REMEDY, _KEY_REMEDY), outbox)
    changes = Changes()
    pace = Pace(period_ns)
    mig_said = False
    while True:
        pace.wait()
        page = reader.read()
        gpus, mig = read_gpus(page.text) if page else ({}, False)
        if page and gpus:
            if reader.accept():
                outbox.event(KIND, f"figures of dcgm-exporter found at {url}: {_what_is_there(gpus)}")
            outbox.sample("dcgm", changes.rows(gpus, page))
            for uuid, xid in changes.xids(gpus).items():
                index = gpus[uuid].number
                text = f"GPU {index} has had the error XID {xid}, as dcgm-exporter says"
                outbox.event("xid", text, source="dcgm", gpu_uuid=uuid, gpu_index=index, code=xid)
        elif page and not mig:
            reader.refuse(f"none of its {count_series(page.text)} series is dcgm-exporter's", _REMEDY)
        elif page:
            reader.refuse("all its figures are those of MIG devices, which are left out", "see what NVML tells of them")
        if mig and not mig_said:
            mig_said = True
            outbox.event(KIND, f"figures of MIG devices at {url} are left out: they carry the UUID of their GPU")
        if reader.pause_ns:
            time.sleep(reader.pause_ns / 1e9)


def _what_is_there(gpus: Dict[str, Gpu]) -> str:
    there = {column for gpu in gpus.values() for column in gpu.values}
    missing = ", ".join(column for column, _ in FIELDS.values() if column not in there)
    return f"{len(gpus)} GPU(s)" + (f"; without {missing}: its list of counters lacks them" if missing else "")
