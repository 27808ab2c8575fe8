"""What each case of bottleneck_cases.py is made of: simulator and load that run into one known limit, or into none."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Case(NamedTuple):
    """`options` are those of `loadgen run`; `rivals`: processes that compete for the workers' core."""

    name: str
    truth: str
    simulator: dict[str, Any]
    options: dict[str, str]
    scenario: str = "chat"
    rivals: int = 0


def _whole(prompt: int, output: int, model: str = "sim-8b") -> dict[str, str]:
    """Options of answers that come whole: tokens then cost the client nothing, so that there may be many."""
    body = json.dumps({"model": model, "prompt": "{{prompt}}", "max_tokens": output})
    return {"url_path": "/v1/completions", "body_template": body, "prompt_tokens": str(prompt)}


def _chat(prompt: int, output: int) -> dict[str, str]:
    return {"prompt_tokens": str(prompt), "output_tokens": str(output)}


def _users(*levels: int) -> dict[str, str]:
    return {"steps": ",".join(map(str, levels))}


def _rates(*levels: int) -> dict[str, str]:
    return {"rate": ",".join(map(str, levels)), "max_in_flight": "400"}


def _gpu(gpu: str, model: str = "8b", dtype: str = "bf16", speedup: float = 1, **more: Any) -> dict[str, Any]:
    return {"gpu": gpu, "model": model, "dtype": dtype, "replicas": 1, "speedup": speedup, **more}


CASES = (
    Case("batch-of-16", "server_queue", _gpu("H100", speedup=4, slots=16), _users(4, 16, 64) | _chat(32, 64)),
    Case("batch-of-8", "server_queue", _gpu("L4", dtype="fp8", speedup=8, slots=8), _users(2, 8, 40) | _chat(64, 48)),
    Case(
        "batched-tokens",
        "server_queue",
        _gpu("H200", dtype="fp8", slots=32, max_batched_tokens=64),
        _users(1, 4, 32) | _chat(512, 8),
    ),
    Case("batch-by-rate", "server_queue", _gpu("H100", speedup=4, slots=16), _rates(40, 120, 300) | _chat(32, 64)),
    Case(
        "batches-of-4-replicas",
        "server_queue",
        _gpu("A100-80G", speedup=4, slots=4) | {"replicas": 4},
        _users(4, 16, 64) | _chat(32, 32),
    ),
    Case("kv-l4", "kv_capacity", _gpu("L4", speedup=100, slots=256), _users(8, 32, 160) | _whole(200, 800), "predict"),
    Case(
        "kv-h100-70b",
        "kv_capacity",
        _gpu("H100", "70b", "fp8", 30, slots=256),
        _users(5, 20, 120) | _whole(200, 400, "sim-70b"),
        "predict",
    ),
    Case(
        "kv-a100-70b",
        "kv_capacity",
        _gpu("A100-80G", "70b", "fp8", 60, slots=256),
        _users(8, 32, 160) | _whole(50, 500, "sim-70b"),
        "predict",
    ),
    Case("kv-streamed", "kv_capacity", _gpu("H100", "70b", "fp8", 5, slots=256), _users(5, 20, 120) | _chat(300, 150)),
    Case(
        "contexts-h200",
        "memory_bandwidth",
        _gpu("H200", dtype="fp8", speedup=50, slots=512),
        _users(16, 64, 192) | _whole(500, 3000),
        "predict",
    ),
    Case(
        "contexts-a100",
        "memory_bandwidth",
        _gpu("A100-80G", dtype="fp8", speedup=150, slots=512),
        _users(16, 50, 180) | _whole(300, 4000),
        "predict",
    ),
    Case(
        "contexts-h100",
        "memory_bandwidth",
        _gpu("H100", dtype="fp8", speedup=60, slots=512),
        _users(20, 70, 220) | _whole(200, 3000),
        "predict",
    ),
    Case("prompts-h100", "compute", _gpu("H100", speedup=2), _users(2, 8, 40) | _chat(1500, 4)),
    Case("items-l4", "compute", _gpu("L4", speedup=5, predict_tokens=500), _users(2, 8, 32), "predict"),
    Case("items-a100", "compute", _gpu("A100-80G", speedup=8, predict_tokens=2000), _users(1, 4, 16), "predict"),
    Case("prompts-h200-70b", "compute", _gpu("H200", "70b", "fp8", 4), _users(2, 8, 32) | _chat(800, 6)),
    Case(
        "items-at-250-w",
        "power_thermal",
        _gpu("H100", speedup=2, predict_tokens=2000, power_limit_w=250.0),
        _users(1, 4, 16),
        "predict",
    ),
    Case(
        "items-at-45-c",
        "power_thermal",
        _gpu("L4", speedup=10, predict_tokens=500, temp_limit_c=45.0),
        _users(2, 8, 32),
        "predict",
    ),
    Case(
        "contexts-at-200-w",
        "power_thermal",
        _gpu("H200", dtype="fp8", speedup=50, slots=512, power_limit_w=200.0),
        _users(16, 64, 192) | _whole(500, 3000),
        "predict",
    ),
    Case(
        "two-cpus",
        "host_cpu",
        _gpu("H100", speedup=4, preprocess_ms=80.0, preprocess_workers=2),
        _users(2, 8, 64) | _chat(32, 16),
    ),
    Case(
        "four-cpus",
        "host_cpu",
        _gpu("L4", dtype="fp8", preprocess_ms=50.0, preprocess_workers=4, predict_tokens=8),
        _users(2, 16, 64),
        "predict",
    ),
    Case(
        "one-cpu-of-8-gpus",
        "host_cpu",
        _gpu("H200", speedup=10, preprocess_ms=60.0, preprocess_workers=1) | {"replicas": 8},
        _users(2, 16, 64) | _chat(64, 32),
    ),
    Case(
        "four-reads",
        "io_wait",
        _gpu("H100", speedup=4, io_wait_ms=160.0, io_places=4),
        _users(2, 8, 64) | _chat(32, 16),
    ),
    Case(
        "eight-reads",
        "io_wait",
        _gpu("A100-80G", io_wait_ms=100.0, io_places=8, predict_tokens=8),
        _users(4, 16, 64),
        "predict",
    ),
    Case(
        "one-read-after-cpu",
        "io_wait",
        _gpu("L4", dtype="fp8", speedup=4, io_wait_ms=40.0, io_places=1, preprocess_ms=8.0),
        _users(2, 8, 48) | _chat(32, 16),
    ),
    Case("link-2-mbit", "network", _gpu("H100", speedup=4, network_mbit_s=0.5), _users(2, 8, 64) | _chat(512, 8)),
    Case(
        "link-and-delay",
        "network",
        _gpu("H200", speedup=2, network_mbit_s=1.0, network_ms=20.0),
        _users(4, 16, 64) | _chat(1500, 8),
    ),
    Case(
        "link-of-items",
        "network",
        _gpu("A100-80G", predict_tokens=8, network_mbit_s=1.0),
        _users(2, 8, 48) | {"prompt_tokens": "200"},
        "predict",
    ),
    Case(
        "worker-of-a-quarter",
        "client",
        _gpu("H200", dtype="fp8", speedup=10) | {"replicas": 8},
        _users(4, 32, 160) | _chat(32, 32),
        rivals=4,
    ),
    Case(
        "worker-of-items",
        "client",
        _gpu("H200", dtype="fp8", speedup=10, predict_tokens=1) | {"replicas": 8},
        _users(2, 32, 160),
        "predict",
        rivals=6,
    ),
    Case(
        "worker-by-rate",
        "client",
        _gpu("H200", dtype="fp8", speedup=10) | {"replicas": 8},
        _rates(10, 60, 300) | _chat(32, 64),
        rivals=8,
    ),
    Case("light-h100", "none", _gpu("H100", speedup=2), _users(2, 4, 16) | _chat(32, 64)),
    Case("busy-but-growing", "none", _gpu("L4", speedup=8), _users(4, 16, 32) | _chat(32, 32)),
    Case("far-away", "none", _gpu("A100-80G", speedup=2, network_ms=200.0), _users(4, 16, 48) | _chat(64, 16)),
    Case("low-rate", "none", _gpu("H100", speedup=4), _rates(5, 20, 60) | _chat(32, 32)),
    Case("capped-but-growing", "none", _gpu("H200", speedup=4, power_limit_w=200.0), _users(2, 8, 24) | _chat(32, 32)),
    Case(
        "enough-cpus",
        "none",
        _gpu("H100", speedup=2, preprocess_ms=40.0, preprocess_workers=32, io_wait_ms=40.0),
        _users(4, 12, 32) | _chat(32, 16),
    ),
)
# Made and run when the rules were ready; what was changed for them is told in the document.
LATER = (
    Case(
        "batch-of-12-of-70b",
        "server_queue",
        _gpu("H200", "70b", "fp8", 6, slots=12),
        _users(3, 12, 60) | _chat(100, 40),
    ),
    Case(
        "batch-of-24-by-rate",
        "server_queue",
        _gpu("A100-80G", speedup=3, slots=24),
        _rates(30, 80, 250) | _chat(48, 48),
    ),
    Case("kv-l4-prompts", "kv_capacity", _gpu("L4", speedup=60), _users(6, 24, 120) | _whole(400, 500), "predict"),
    Case(
        "kv-h100-prompts",
        "kv_capacity",
        _gpu("H100", "70b", "fp8", 20),
        _users(3, 12, 100) | _whole(300, 500, "sim-70b"),
        "predict",
    ),
    Case(
        "contexts-a100-16-bit",
        "memory_bandwidth",
        _gpu("A100-80G", speedup=100, slots=512),
        _users(20, 80, 150) | _whole(300, 4000),
        "predict",
    ),
    Case(
        "contexts-h200-16-bit",
        "memory_bandwidth",
        _gpu("H200", speedup=40, slots=512),
        _users(16, 64, 200) | _whole(1000, 3000),
        "predict",
    ),
    Case("prompts-l4", "compute", _gpu("L4", dtype="fp8", speedup=4), _users(2, 8, 32) | _chat(600, 4)),
    Case(
        "items-h200", "compute", _gpu("H200", dtype="fp8", speedup=5, predict_tokens=4000), _users(1, 4, 16), "predict"
    ),
    Case(
        "items-at-150-w",
        "power_thermal",
        _gpu("A100-80G", speedup=6, predict_tokens=1500, power_limit_w=150.0),
        _users(1, 4, 16),
        "predict",
    ),
    Case(
        "contexts-at-40-c",
        "power_thermal",
        _gpu("H100", dtype="fp8", speedup=50, slots=512, temp_limit_c=40.0),
        _users(20, 70, 220) | _whole(200, 3000),
        "predict",
    ),
    Case(
        "three-cpus",
        "host_cpu",
        _gpu("A100-80G", speedup=2, preprocess_ms=60.0, preprocess_workers=3),
        _users(3, 12, 60) | _chat(64, 24),
    ),
    Case(
        "sixteen-cpus",
        "host_cpu",
        _gpu("H100", speedup=2, preprocess_ms=200.0, preprocess_workers=16, predict_tokens=8),
        _users(4, 32, 128),
        "predict",
    ),
    Case(
        "two-reads",
        "io_wait",
        _gpu("A100-80G", speedup=2, io_wait_ms=50.0, io_places=2),
        _users(2, 8, 48) | _chat(32, 24),
    ),
    Case(
        "many-reads",
        "io_wait",
        _gpu("L4", dtype="fp8", io_wait_ms=300.0, io_places=24, predict_tokens=8),
        _users(8, 24, 96),
        "predict",
    ),
    Case(
        "link-of-short-prompts",
        "network",
        _gpu("L4", dtype="fp8", speedup=4, network_mbit_s=0.25),
        _users(2, 8, 64) | _chat(100, 16),
    ),
    Case(
        "link-of-long-items",
        "network",
        _gpu("H100", predict_tokens=8, network_mbit_s=8.0),
        _users(2, 6, 32) | {"prompt_tokens": "3000"},
        "predict",
    ),
    Case(
        "worker-of-a-sixth",
        "client",
        _gpu("L4", dtype="fp8", speedup=40) | {"replicas": 8},
        _users(4, 32, 200) | _chat(64, 16),
        rivals=5,
    ),
    Case(
        "worker-of-a-ninth",
        "client",
        _gpu("A100-80G", speedup=10, predict_tokens=1) | {"replicas": 8},
        _users(2, 16, 128),
        "predict",
        rivals=8,
    ),
    Case("light-70b", "none", _gpu("H200", "70b", "fp8", 4), _users(2, 6, 20) | _chat(64, 32)),
    Case("small-items", "none", _gpu("A100-80G", predict_tokens=4), _users(2, 4, 8), "predict"),
    Case("rates-of-l4", "none", _gpu("L4", dtype="fp8", speedup=8), _rates(10, 40, 100) | _chat(32, 16)),
)
