"""Pages of dcgm-exporter: units, what is left out, and when a row goes out."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import Sent, Site, until

from remote_agents.agent.dcgm import FIELDS, Changes, read_gpus, scrape
from remote_agents.agent.prometheus import Page
from remote_agents.agent.protocol import EVENT, SAMPLE
from remote_agents.agent.sample import TABLES

A = 'gpu="0",UUID="GPU-a",pci_bus_id="00000000:18:00.0",device="nvidia0",modelName="NVIDIA H100",Hostname="n1"'
B = 'gpu="1",UUID="GPU-b",pci_bus_id="00000000:2A:00.0",device="nvidia1",modelName="NVIDIA H100",Hostname="n1"'
PAGE = f"""# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).
# TYPE DCGM_FI_DEV_SM_CLOCK gauge
DCGM_FI_DEV_SM_CLOCK{{{A},DCGM_FI_DRIVER_VERSION="550.54.15"}} 1980
DCGM_FI_DEV_SM_CLOCK{{{B},DCGM_FI_DRIVER_VERSION="550.54.15"}} 345
DCGM_FI_DEV_MEM_CLOCK{{{A}}} 2619
DCGM_FI_DEV_GPU_TEMP{{{A}}} 61
DCGM_FI_DEV_POWER_USAGE{{{A}}} 409.692000
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{A}}} 319159391
DCGM_FI_DEV_GPU_UTIL{{{A}}} 100
DCGM_FI_DEV_XID_ERRORS{{{A}}} 0
DCGM_FI_DEV_XID_ERRORS{{{B}}} 31
DCGM_FI_DEV_FB_USED{{{A}}} 4845
DCGM_FI_PROF_SM_ACTIVE{{{A}}} 0.875
DCGM_FI_PROF_SM_OCCUPANCY{{{A}}} 0.5
DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{A}}} 0.25
DCGM_FI_PROF_DRAM_ACTIVE{{{A}}} 0.690789
"""
MIG = A + ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="9"'
NAMES = [column.name for column in TABLES["dcgm"]]


def page(text: str, t_ns: int) -> Page:
    return Page(text, len(text), t_ns - 1000, t_ns, 2, 1)


def named(row: list[Any]) -> dict[str, Any]:
    return dict(zip(NAMES, row, strict=True))


def test_figures_come_in_the_units_of_the_table() -> None:
    gpus, mig = read_gpus(PAGE)
    first, second = (named(row) for row in Changes().rows(gpus, page(PAGE, 5_000)))
    assert not mig
    assert first == {
        "t0_mono_ns": 4000,
        "t1_mono_ns": 5000,
        "gpu_uuid": "GPU-a",
        "gpu_index": 0,
        "render_us": 2,
        "util_pct": 100,
        "sm_active_pct": 87.5,
        "sm_occ_pct": 50,
        "tensor_pct": 25,
        "dram_pct": pytest.approx(69.0789),
        "mem_used_b": 4845 << 20,
        "power_mw": 409_692,
        "energy_mj": 319_159_391,
        "sm_mhz": 1980,
        "temp_c": 61,
    }
    assert all(isinstance(first[name], int) for name in ("mem_used_b", "power_mw", "energy_mj", "sm_mhz", "temp_c"))
    assert (second["gpu_uuid"], second["sm_mhz"], second["util_pct"], second["temp_c"]) == ("GPU-b", 345, None, None)


def test_every_field_fills_a_column() -> None:
    assert {column for column, _ in FIELDS.values()} == set(NAMES[NAMES.index("render_us") + 1 :])


def test_a_row_goes_out_when_a_figure_changed_or_after_30_s() -> None:
    changes = Changes()
    sent = []
    for second in range(66):
        text = PAGE.replace("} 61", "} 62") if second >= 5 else PAGE
        sent.append(
            [named(row)["gpu_uuid"] for row in changes.rows(read_gpus(text)[0], page(text, second * 1_000_000_000))]
        )
    assert {second: uuids for second, uuids in enumerate(sent) if uuids} == {
        0: ["GPU-a", "GPU-b"],
        5: ["GPU-a"],
        30: ["GPU-b"],
        35: ["GPU-a"],
        60: ["GPU-b"],
        65: ["GPU-a"],
    }


def test_mig_devices_are_left_out() -> None:
    gpus, mig = read_gpus(PAGE + f"DCGM_FI_DEV_FB_USED{{{MIG}}} 6\nDCGM_FI_PROF_SM_ACTIVE{{{MIG}}} 1\n")
    assert mig
    assert gpus == read_gpus(PAGE)[0]


def test_what_dcgm_writes_for_no_value_is_none() -> None:
    blanks = f"DCGM_FI_DEV_FB_USED{{{B}}} 9223372036854775794\nDCGM_FI_DEV_POWER_USAGE{{{B}}} 140737488355330.000000\n"
    gpus, _ = read_gpus(f'{PAGE}{blanks}DCGM_FI_DEV_GPU_TEMP{{gpu="2"}} 50\n')
    assert gpus["GPU-b"].values == {"sm_mhz": 345}
    assert set(gpus) == {"GPU-a", "GPU-b"}


def test_an_xid_is_told_when_it_comes_not_when_it_stays() -> None:
    changes = Changes()
    told = [
        changes.xids(read_gpus(text)[0])
        for text in (
            PAGE,
            PAGE.replace("XID_ERRORS{" + A + "} 0", "XID_ERRORS{" + A + "} 79"),
            PAGE.replace("XID_ERRORS{" + A + "} 0", "XID_ERRORS{" + A + "} 79"),
            PAGE,
            PAGE.replace("} 31", "} 48"),
        )
    ]
    assert told == [{}, {"GPU-a": 79}, {}, {}, {"GPU-b": 48}]


def scraping(site: Site, sent: Sent) -> None:
    threading.Thread(target=scrape, args=(site.url + "/metrics", sent.outbox, 20_000_000), daemon=True).start()


def test_an_exporter_is_read_again_and_again_and_a_page_of_before_is_not_repeated(site: Site, sent: Sent) -> None:
    site.pages["/metrics"] = (200, PAGE, 0)
    scraping(site, sent)
    until(lambda: len(site.asked) >= 4)
    site.pages["/metrics"] = (
        200,
        PAGE.replace("_ERRORS{" + A + "} 0", "_ERRORS{" + A + "} 79").replace("319159391", "4e8"),
        0,
    )
    until(lambda: len(site.asked) >= 6)
    frames = sent.frames()
    rows = [named(row) for frame in frames if frame.kind == SAMPLE for row in frame.body[2]]
    events = [frame.body for frame in frames if frame.kind == EVENT]
    assert [(row["gpu_uuid"], row["energy_mj"]) for row in rows] == [
        ("GPU-a", 319_159_391),
        ("GPU-b", None),
        ("GPU-a", 400_000_000),
    ]
    assert [event["kind"] for event in events] == ["dcgm", "xid"]
    assert events[0]["text"] == f"figures of dcgm-exporter found at {site.url}/metrics: 2 GPU(s)"
    assert events[1]["text"] == "GPU 0 has had the error XID 79, as dcgm-exporter says"
    assert {name: events[1][name] for name in ("source", "gpu_uuid", "gpu_index", "code")} == {
        "source": "dcgm",
        "gpu_uuid": "GPU-a",
        "gpu_index": 0,
        "code": 79,
    }


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (404, "", ["status 404: say where dcgm-exporter is with --dcgm-url"]),
        (200, "go_goroutines 12\n", ["none of its 1 series is dcgm-exporter's: say where"]),
        (
            200,
            f"DCGM_FI_DEV_FB_USED{{{MIG}}} 6\n",
            [
                "all its figures are those of MIG devices, which are left out: see what NVML tells",
                "figures of MIG devices",
            ],
        ),
    ],
)
def test_a_page_without_figures_is_said_once(site: Site, sent: Sent, status: int, text: str, said: list[str]) -> None:
    site.pages["/metrics"] = (status, text, 0)
    scraping(site, sent)
    until(lambda: site.asked)
    texts: list[str] = []
    until(lambda: texts.extend(event["text"] for event in sent.events()) or len(texts) == len(said))
    assert all(part in full for part, full in zip(said, texts, strict=True))


def test_which_figures_an_exporter_lacks_is_said(site: Site, sent: Sent) -> None:
    few = "".join(line + "\n" for line in PAGE.split("\n") if "PROF" not in line)
    site.pages["/metrics"] = (200, few + f"DCGM_FI_DEV_FB_USED{{{MIG}}} 6\n", 0)
    scraping(site, sent)
    texts: list[str] = []
    until(lambda: texts.extend(event["text"] for event in sent.events()) or len(texts) == 2)
    lacks = "without sm_active_pct, sm_occ_pct, tensor_pct, dram_pct: its list of counters lacks them"
    assert texts[0].endswith(f": 2 GPU(s); {lacks}")
    assert texts[1] == f"figures of MIG devices at {site.url}/metrics are left out: they carry the UUID of their GPU"
