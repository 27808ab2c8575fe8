"""What a user sees while a run goes on, where there is no terminal."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.progress import Progress

LINE: dict[str, Any] = {
    "step": 1,
    "steps": 3,
    "level": 1000,
    "unit": "users",
    "phase": "hold",
    "users": 1000,
    "qps": 61.97,
    "ttft_p50_ms": 112.4,
    "ttft_p99_ms": 1234.5,
    "read_lag_p99_ms": 0.42,
    "send_lag_p99_ms": 1.26,
    "failed": 3,
    "telemetry": {},
}


def shown(capsys: pytest.CaptureFixture[str], **line: Any) -> str:
    Progress().show({**LINE, **line})
    return capsys.readouterr().err


def test_closed_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == (
        "step 2/3  phase hold  users 1000/1000  QPS 62.0  TTFT p50 112 ms  p99 1.23 s  lag p99 0.4 ms  errors 3"
        "  queue -  GPU -  VRAM -\n"
    )


def test_open_model_has_its_rate_and_how_late_it_sent(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, unit="requests/s", level=62.5, users=7)
    assert "users 7  QPS 62/62.5  " in text
    assert "lag p99 0.4/1.3 ms" in text


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(["ttft_p50_ms", "ttft_p99_ms", "read_lag_p99_ms", "send_lag_p99_ms"])
    assert "TTFT p50 -  p99 -  lag p99 -  " in shown(capsys, **nothing)
    assert "lag p99 -/1.3 ms" in shown(capsys, **nothing | {"send_lag_p99_ms": 1.3}, unit="requests/s")
