"""The grammar of objectives: what it takes, and one sentence for each thing that it does not."""

import pytest

from loadgen.errors import UsageError
from loadgen.slo import Objective, parse_slo


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ttft_p99<1s", (Objective("ttft", "p99", 1000),)),
        ("error_rate<2%", (Objective("error_rate", "", 2),)),
        ("e2e_p95 <= 3s", (Objective("e2e", "p95", 3000),)),
        ("itl_p99<80ms", (Objective("itl", "p99", 80),)),
        ("E2E_mean<1m30s", (Objective("e2e", "mean", 90_000),)),
        (" tpot_p50<0.5s , error_rate<.1% ", (Objective("tpot", "p50", 500), Objective("error_rate", "", 0.1))),
    ],
)
def test_objectives_are_read(text: str, expected: tuple[Objective, ...]) -> None:
    assert parse_slo(text) == expected
    assert parse_slo(",".join(map(str, expected))) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no objective"),
        ("ttft_p99", "no objective"),
        ("<1s", "no figure of a step"),
        ("ttft_p98<1s", "no figure of a step"),
        ("latency<1s", "no figure of a step"),
        ("ttft_p99<1", "no unit"),
        ("ttft_p99<fast", "no duration"),
        ("ttft_p99<0s", "above 0"),
        ("ttft_p99>1s", "upper limit"),
        ("ttft_p99==1s", "upper limit"),
        ("error_rate<2", "such as error_rate<2%"),
        ("error_rate<0%", "above 0 %"),
        ("error_rate<200%", "up to 100 %"),
        ("ttft_p99<1s,ttft_p99<2s", "two limits"),
        ("ttft_p99<1s,", "no objective"),
    ],
)
def test_what_is_no_objective_is_said_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        parse_slo(text)
    assert len(str(raised.value).splitlines()) == 1


def test_every_problem_is_said() -> None:
    with pytest.raises(UsageError) as raised:
        parse_slo("ttft<1s,error_rate<2,e2e_p99<1s")
    assert len(str(raised.value).splitlines()) == 2
