"""`loadgen plan` as a command: on a run directory, in each format, and with what it refuses."""

import json
import subprocess
from pathlib import Path

import pytest

from loadgen.cli_plan import demand_of
from loadgen.errors import UsageError
from tests.analysis import synthetic as syn

GIVEN = {"target_qps": "1000", "slo": "ttft_p99<1s"}


def closed_loop(run: Path) -> Path:
    """Users of a server of 20 slots: 100 ms each below that, and in turn above."""
    syn.make(run, (5, 10, 20, 40), 10.0)
    rows = []
    for number, users in enumerate((5, 10, 20, 40)):
        cycle_s = 0.1 * max(1.0, users / 20)
        for user in range(users):
            begin_s = 10.0 * number + cycle_s * user / users
            while begin_s < 10.0 * (number + 1) - cycle_s:
                rows.append(syn.request(begin_s, 1000 * cycle_s - 90, seq=len(rows)))
                begin_s += cycle_s
    syn.write_requests(run, rows)
    syn.write_table(run, "here", "gpu_fast", [syn.gpu(k / 5) for k in range(210)])
    syn.hello(run, "here", gpus=1)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return closed_loop(tmp_path_factory.mktemp("plan") / "run")


def call(loadgen: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([loadgen, "plan", *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_json(loadgen: str, run: Path) -> None:
    ended = call(loadgen, run, "--target-qps", 1000, "--slo", "ttft_p99<80ms", "--gpu-hour", 3.5, "--format", "json")
    assert ended.returncode == 0, ended.stderr
    made = json.loads(ended.stdout)
    for name in ("knee", "max_qps_within_slo", "replicas", "gpus"):
        assert made[f"{name}_low"] <= made[name] <= (made[f"{name}_high"] or 1e9), name
    assert made["max_qps_within_slo"] == pytest.approx(200, rel=0.05)
    assert made["replicas"] == made["gpus"] == 8 and made["cost_per_hour"] == 28
    assert made["power_w"] == pytest.approx(8 * 300, rel=0.05)


def test_text_and_html(loadgen: str, run: Path, tmp_path: Path) -> None:
    asked = (run, "--target-qps", "1000", "--slo", "ttft_p99<80ms,error_rate<2%")
    text = call(loadgen, *asked)
    assert text.returncode == 0 and text.stdout.startswith("1000 requests/s within ttft_p99<80ms, error_rate<2% need 8")
    page = tmp_path / "plan.html"
    assert call(loadgen, *asked, "--format", "html", "--output", page).returncode == 0
    assert page.read_text().startswith("<!doctype html>")
    assert not (run / "report").exists()  # a plan writes nothing into the run


def test_a_plan_reads_the_report_that_is_there(loadgen: str, tmp_path: Path) -> None:
    run = closed_loop(tmp_path / "run")
    assert subprocess.run([loadgen, "report", str(run)], capture_output=True, timeout=60).returncode == 0
    summary = run / "report" / "summary.json"
    summary.write_text(summary.read_text().replace('"20260101T000000Z-chat"', '"told by the summary"'))
    asked = ("--target-qps", "1000", "--slo", "ttft_p99<80ms", "--format", "json")
    assert json.loads(call(loadgen, run, *asked).stdout)["run_id"] == "told by the summary"
    summary.write_text("cut in the mid")
    assert json.loads(call(loadgen, run, *asked).stdout)["run_id"] == "20260101T000000Z-chat"


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (("--slo", "ttft_p99<1s"), 2, "--target-qps"),
        (("--target-qps", "10"), 2, "--slo"),
        (("--target-qps", "10", "--slo", "itl_p98<1s"), 2, "no figure of a step"),
        (("--target-qps", "10", "--slo", "ttft_p99<1s", "--format", "html"), 2, "--output"),
        (("--target-qps", "10", "--slo", "ttft_p99<1s", "--gpus-per-replica", "2"), 2, "does not divide"),
        (("--target-qps", "10", "--slo", "ttft_p99<1s", "--output", "/no/such/folder/plan"), 1, "cannot write"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_its_code(
    loadgen: str, run: Path, given: tuple[str, ...], code: int, says: str
) -> None:
    ended = call(loadgen, run, *given)
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr and "Traceback" not in ended.stderr and ended.stderr.count("error:") == 1


def test_a_directory_that_is_no_run_is_said_so(loadgen: str, tmp_path: Path) -> None:
    ended = call(loadgen, tmp_path, "--target-qps", "10", "--slo", "ttft_p99<1s")
    assert ended.returncode == 4 and "no run directory" in ended.stderr
    empty = syn.make(tmp_path / "empty", (10,))
    ended = call(loadgen, empty, "--target-qps", "10", "--slo", "ttft_p99<1s")
    assert ended.returncode == 4 and "no step to plan with" in ended.stderr


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("target_qps", "0", "number above 0"),
        ("target_qps", "-1", "number above 0"),
        ("target_qps", "many", "number above 0"),
        ("target_qps", "inf", "number above 0"),
        ("headroom", "100%", "below 100%"),
        ("headroom", "-5%", "no share"),
        ("headroom", "20", "no share"),
        ("headroom", "much", "no share"),
        ("spare", "-1", "no whole number"),
        ("spare", "1.5", "no whole number"),
        ("gpu_hour", "0", "number above 0"),
        ("gpu_hour", "$3", "number above 0"),
        ("gpus_per_replica", "0", "1 or more"),
        ("slo", "ttft<1s", "no figure"),
    ],
)
def test_options_that_mean_nothing_are_refused(option: str, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        demand_of(GIVEN | {option: text})
    assert str(raised.value).startswith(f"--{option.replace('_', '-')}: ")


def test_options_that_mean_something() -> None:
    assert demand_of(GIVEN).headroom == 0.2 and demand_of(GIVEN).spare == 1
    given = GIVEN | {"headroom": "0.35", "spare": "0", "gpu_hour": "3.5", "gpus_per_replica": "2"}
    found = demand_of(given)
    assert (found.headroom, found.spare, found.gpu_hour, found.gpus_per_replica) == (0.35, 0, 3.5, 2)
