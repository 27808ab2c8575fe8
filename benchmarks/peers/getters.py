"""The obvious way to watch a host: every 100 ms a line of JSON with what pynvml's getters and psutil say."""

from __future__ import annotations

import json
import sys
import time

import psutil
import pynvml


def gpu(handle: object) -> dict[str, float]:
    used = pynvml.nvmlDeviceGetUtilizationRates(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "util": used.gpu,
        "memory_util": used.memory,
        "used": memory.used,
        "total": memory.total,
        "power": pynvml.nvmlDeviceGetPowerUsage(handle),
        "energy": pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "sm_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "memory_clock": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "temperature": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "throttled": pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        "processes": len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    }


def main() -> None:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    ends = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < ends:
        due = time.monotonic() + 0.1
        host = {
            "cpu": psutil.cpu_times_percent(percpu=True),
            "memory": psutil.virtual_memory(),
            "network": psutil.net_io_counters(),
            "disk": psutil.disk_io_counters(),
            "load": psutil.getloadavg(),
        }
        print(json.dumps({"t": time.time(), "gpus": [gpu(handle) for handle in handles], "host": host}), flush=True)
        time.sleep(max(due - time.monotonic(), 0))


if __name__ == "__main__":
    main()
