"""Mapping files: what they say, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_agents.agent.server_series import METRICS, known_series, mapped_series, server_values
from remote_agents.metrics_map import read_metrics_map

EXAMPLE = """
[running]
series = "my_server_active_requests"
label = "state=busy"      # optional
combine = "max"           # optional, sum
scale = 1.0               # optional

[kv_pool_b]
series = "my_cache_kib_total"
scale = 1024
"""


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    return tmp_path / "map.toml"


def test_the_example_gives_rows_that_agents_take(mapping: Path) -> None:
    mapping.write_text(EXAMPLE)
    rows, problems = read_metrics_map(str(mapping))
    assert problems == []
    assert rows == [
        ["running", "my_server_active_requests", ["state", "busy"], "max", 1.0],
        ["kv_pool_b", "my_cache_kib_total", None, "sum", 1024.0],
    ]
    page = (
        'my_server_active_requests{state="busy"} 3\nmy_server_active_requests{state="idle"} 5\nmy_cache_kib_total 2\n'
    )
    assert server_values(page, known_series(mapped_series(rows))) == {"": {"running": 3, "kv_pool_b": 2048}}


def test_a_label_may_hold_what_a_label_may_hold(mapping: Path) -> None:
    mapping.write_text('[waiting]\nseries = "a:b"\nlabel = \'path=/a?b=c "d"\'\n')
    assert read_metrics_map(str(mapping))[0] == [["waiting", "a:b", ["path", '/a?b=c "d"'], "sum", 1.0]]


def test_every_problem_is_said_at_once(mapping: Path) -> None:
    mapping.write_text("""
success = "my_total"
[queue]
series = "q"
[running]
label = "state"
combine = "mean"
scale = 0
unit = "ms"
[waiting]
series = "q{state=busy}"
scale = true
[failed]
series = 7
label = ["a", "b"]
scale = nan
""")
    rows, problems = read_metrics_map(str(mapping))
    assert rows == []
    begin = f"the mapping {mapping}, "
    assert [problem.removeprefix(begin) for problem in problems] == [
        'success: write [success] in a line of its own, and series = "NAME" below it',
        f"[queue]: this is no column of table server; choose {', '.join(METRICS)}",
        "[running] unit: this key is unknown; choose series, label, combine, scale",
        '[running]: the series is missing; give it as series = "NAME"',
        "[running] label 'state': give one label as \"NAME=VALUE\"",
        "[running] combine 'mean': choose sum or max",
        "[running] scale 0: give a number above 0",
        "[waiting] series 'q{state=busy}': give the name of a series, without labels",
        "[waiting] scale True: give a number above 0",
        "[failed] series 7: give the name of a series, without labels",
        "[failed] label ['a', 'b']: give one label as \"NAME=VALUE\"",
        "[failed] scale nan: give a number above 0",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (no such file or directory): give another file"),
        (b"[running", "is no TOML: "),
        (b"\xff\xfe", "is no TOML: "),
        (b"# nothing\n", "names no column: give one or more of running, waiting, "),
    ],
)
def test_a_file_that_is_none_is_said(mapping: Path, text: bytes | None, said: str) -> None:
    if text is not None:
        mapping.write_bytes(text)
    rows, [problem] = read_metrics_map(str(mapping))
    assert rows == []
    assert problem.startswith(f"the mapping {mapping} {said}")
