"""The grammar of gates: what is understood, what is refused and how, and that every figure is one of a comparison."""

from __future__ import annotations

import pytest

from analysis.compared import COMPARED
from loadgen.errors import UsageError
from loadgen.gates import FIGURES, parse_gates


@pytest.mark.parametrize(
    ("text", "figure", "sign", "relative", "limit"),
    [
        ("ttft_p95<+20%", "ttft_p95", "<", True, 1.2),
        ("TTFT_P95 <= +20 %", "ttft_p95", "<", True, 1.2),
        ("qps>-5%", "qps", ">", True, 0.95),
        ("qps>-0%", "qps", ">", True, 1.0),
        ("qps>100", "qps", ">", False, 100),
        ("ttft_p99<1.5s", "ttft_p99", "<", False, 1500),
        ("itl_p50<80ms", "itl_p50", "<", False, 80),
        ("error_rate<2%", "error_rate", "<", False, 2),
        ("vram<70GiB", "vram", "<", False, 70 * 2**30),
        ("vram<80GB", "vram", "<", False, 80e9),
        ("power<1.2kW", "power", "<", False, 1200),
        ("j_per_output_token<500mJ", "j_per_output_token", "<", False, 0.5),
        ("output_tokens>-10%", "output_tokens", ">", True, 0.9),
        ("output_tokens<+10%", "output_tokens", "<", True, 1.1),
        ("queue<5", "queue", "<", False, 5),
    ],
)
def test_what_is_understood(text: str, figure: str, sign: str, relative: bool, limit: float) -> None:
    (gate,) = parse_gates(text)
    assert gate[:3] == (figure, sign, relative) and gate.limit == pytest.approx(limit)
    assert parse_gates(str(gate)) == (gate,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no gate"),
        ("ttft_p95", "is no gate"),
        ("ttft_p98<1s", "no figure of a comparison"),
        ("ttft_p95=1s", "write ttft_p95<"),
        ("qps<+5%", "wrong way round"),
        ("ttft_p95>-5%", "wrong way round"),
        ("ttft_p95<20%", "has no unit"),
        ("ttft_p95<1000", "has no unit"),
        ("ttft_p95<-5%", "asks NEW to be better"),
        ("qps>+5%", "asks NEW to be better"),
        ("qps>-100%", "less than 100 %"),
        ("error_rate<+2%", "may well be 0"),
        ("queue<+10%", "such as queue<5"),
        ("error_rate<200%", "up to 100 %"),
        ("vram<70", "a limit is written"),
        ("vram<0GiB", "above 0"),
        ("ttft_p95<1s,ttft_p95<2s", "two limits of one kind"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_gates(text)


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        parse_gates("qps<+5%,ttft_p95<+20%,foo<1")
    assert len(str(raised.value).splitlines()) == 2


def test_a_relative_and_an_absolute_limit_of_one_figure_go_together() -> None:
    assert len(parse_gates("ttft_p95<+20%,ttft_p95<1s")) == 2


def test_what_can_be_gated_is_what_is_compared() -> None:
    assert list(FIGURES) == list(COMPARED)
