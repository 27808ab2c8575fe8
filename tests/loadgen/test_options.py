"""Options: one table, every problem at once, no secret in what is written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import certifi
import pytest

from loadgen.errors import UsageError
from loadgen.options import RUN_OPTIONS, SCENARIO_OPTIONS, parse_settings, without_replaced
from loadgen.plan import Step, default_levels, parse_duration
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("1h30m", 5400), (" 60s ", 60)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5x", "1s2", "-1", "1 s", "m5"])
def test_what_is_no_duration(text: str) -> None:
    if text == "1s2":
        assert parse_duration(text) == 3  # a bare number is seconds, also behind another
        return
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(text)


def test_default_levels_drop_zeros_and_doubles() -> None:
    assert default_levels(5000) == (100, 500, 1000, 2500, 5000)
    assert default_levels(4) == (1, 2, 4)
    assert default_levels(1) == (1,)


def test_every_problem_at_once() -> None:
    texts = {
        "host": "gpu1:8000",
        "steps": "5,0",
        "step_time": "soon",
        "prompt_tokens": "many",
        "header": "no colon",
        "extra_body": "[1]",
        "agents": "local,gpu7:ssh",
        "workers": "0",
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(texts, simulated=False, steps_required=True)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("--steps", "--step-time", "--host", "--prompt-tokens", "--header", "--extra-body", "--agents", "--workers"),
    ]
    assert "agent 'gpu7:ssh' has no port after the colon" in lines[-2]


def test_defaults_depend_on_the_target() -> None:
    simulated = parse_settings({}, simulated=True, steps_required=True)
    real = parse_settings({}, simulated=False, steps_required=True)
    assert (simulated.prompt_tokens, simulated.output_tokens) == (32, 32)
    assert (real.prompt_tokens, real.output_tokens) == (512, 128)
    assert [step.level for step in real.plan.steps] == [20, 100, 200, 500, 1000]
    assert real.plan.steps[0].duration_s == 20
    assert parse_settings({"step_requests": "50"}, simulated=True, steps_required=True).plan.steps[0].duration_s is None


def test_secrets_are_not_for_writing_down() -> None:
    header = "Authorization: Bearer s3cret\nX-Auth-Token: s3cret\nX-Team: red"
    settings = parse_settings({"header": header}, simulated=False, steps_required=True)
    assert dict(settings.headers)["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(settings.public_texts())
    assert "X-Team:red" in settings.public_texts()["header"]
    with pytest.raises(UsageError, match="give it again with --header 'Authorization"):
        parse_settings(settings.public_texts(), simulated=False, steps_required=True)


_CLOSED = {"steps": "1,20", "think_time": "1s-2.5s"}
_OPEN = {"rate": "0.1,1000000", "arrival": "gamma:2.5", "max_in_flight": "7"}


def _texts(folder: Path) -> dict[str, str]:
    (folder / "config.json").write_text("{}")
    (folder / "map.toml").write_text('[running]\nseries = "my_active"\n')
    return {
        "host": "https://h:1/base",
        "model": "m",
        "step_time": "90",
        "step_requests": "500",
        "ramp": "2.5s",
        "prompt_tokens": "7",
        "output_tokens": "8",
        "timeout": "1m",
        "first_token_timeout": "10s",
        "cancel_rate": "0.01",
        "reuse": "off",
        "source_addresses": "127.0.0.1,::1",
        "ca_file": certifi.where(),
        "header": "A: b\nC: d",
        "extra_body": '{"x": [1]}',
        "api_key_env": "KEY",
        "method": "PUT",
        "url_path": "/v1/p?q=1",
        "body_template": '{"n": {{n}}}',
        "server_time": "header:x-queue-ms,field:a.b_us",
        "slo": "ttft_p99<1.5s,error_rate<2%",
        "model_config": str(folder / "config.json"),
        "agents": "local,user@gpu2:2222",
        "ssh_config": str(ROOT / "setup.cfg"),
        "accept_new_host_keys": "true",
        "agent_lease": "45s",
        "agent_dir": "~/agents",
        "require_agents": "true",
        "metrics_url": "http://h:2/m",
        "metrics_map": str(folder / "map.toml"),
        "dcgm_url": "http://127.0.0.1:9400/metrics",
        "gpus": "0,1",
        "label": "l",
        "notes": "n",
        "runs_dir": "r",
        "seed": "5",
        "workers": "3",
        "repeat": "2",
    }


@pytest.mark.parametrize("load", [_CLOSED, _OPEN], ids=["closed", "open"])
def test_texts_and_settings_are_each_others_inverse(load: dict[str, str], tmp_path: Path) -> None:
    texts = {**_texts(tmp_path), **load}
    settings = parse_settings(texts, simulated=False, steps_required=True)
    assert parse_settings(settings.texts(), simulated=False, steps_required=True) == settings
    assert settings.texts().keys() == texts.keys()
    # Which exclude one of those given, or are written down as others: as steps, as agents.
    assert {option.key for option in RUN_OPTIONS} - texts.keys() - {*_CLOSED, *_OPEN} == {
        "agents_file",
        "concurrency",
        "insecure",
    }


def test_a_flag_is_given_in_any_way() -> None:
    for value in (True, "true", "1", "on"):
        settings = parse_settings({"insecure": value}, simulated=False, steps_required=True)
        assert settings.insecure
        assert settings.texts()["insecure"] == "true"
    for other in (False, "", "0", "false", "off", None):
        assert not parse_settings({"insecure": other}, simulated=False, steps_required=True).insecure


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ({"rate": "5", "steps": "10"}, "--steps and --rate: give one of them"),
        ({"rate": "5", "concurrency": "10"}, "--concurrency and --rate: give one of them"),
        ({"rate": "5", "think_time": "1s"}, "--think-time: users have one, not --rate or --arrival"),
        ({"arrival": "constant"}, "--arrival: needs --rate"),
        ({"max_in_flight": "9"}, "--max-in-flight: needs --rate"),
        ({"rate": "5,0"}, "--rate: '5,0' are no rates: give numbers above 0 and commas, such as 0.5,100,1000"),
        ({"rate": "nan"}, "--rate: 'nan' are no rates: give numbers above 0 and commas, such as 0.5,100,1000"),
        (
            {"rate": "5", "arrival": "gamma"},
            "--arrival: 'gamma' lacks the coefficient of variation of the gaps: give one above 0, as gamma:2.5",
        ),
        (
            {"rate": "5", "arrival": "bursty"},
            "--arrival: 'bursty' is neither constant, poisson nor gamma:CV, and no such file is there",
        ),
        ({"think_time": "3s-1s"}, "--think-time: '3s-1s' goes down: give the shorter time first"),
        ({"cancel_rate": "1.5"}, "--cancel-rate: '1.5' is no share: give a number from 0 to 1"),
        ({"first_token_timeout": "0"}, "--first-token-timeout: '0' must be above 0"),
        ({"reuse": "maybe"}, "--reuse: 'maybe' is neither on nor off"),
        ({"source_addresses": "127.0.0.1,eth0"}, "--source-addresses: 'eth0' is no IP address"),
        ({"slo": "ttft_p99>1s"}, "--slo: 'ttft_p99>1s' has '>': an objective is an upper limit, such as ttft_p99<1s"),
        ({"model_config": __file__}, f"--model-config: {__file__!r} holds no JSON object"),
        (
            {"model_config": "/nowhere/config.json"},
            "--model-config: '/nowhere/config.json' cannot be read (no such file or directory)",
        ),
        ({"ca_file": "/nowhere/ca.pem"}, "--ca-file: '/nowhere/ca.pem' cannot be read (no such file or directory)"),
        ({"ca_file": __file__}, f"--ca-file: {__file__!r} holds no PEM certificate"),
        ({"ca_file": certifi.where(), "insecure": True}, "--ca-file and --insecure: give one of them"),
    ],
)
def test_what_does_not_fit(texts: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_settings(texts, simulated=False, steps_required=True)
    assert str(caught.value) == problem


def test_a_trace_brings_its_own_rate(tmp_path: Path) -> None:
    trace = tmp_path / "times.txt"
    trace.write_text("# when they came\n1700000000.0\n1700000000.5\n\n1700000002.0\n")
    settings = parse_settings({"arrival": str(trace)}, simulated=False, steps_required=True)
    assert settings.plan.steps == (Step(1.0, "requests/s", None, 3),)
    assert parse_settings(settings.texts(), simulated=False, steps_required=True) == settings
    faster = parse_settings({"arrival": str(trace), "rate": "10,20"}, simulated=False, steps_required=True)
    assert faster.plan.steps == (Step(10.0, "requests/s", 20.0, None), Step(20.0, "requests/s", 20.0, None))
    with pytest.raises(UsageError, match="--steps and --arrival: give one of them"):
        parse_settings({"arrival": str(trace), "steps": "5"}, simulated=False, steps_required=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "needs two different times at least"),
        ("1\n1\n", "needs two different times at least"),
        ("1\n3\n2\n", "line 3: times must be finite, and not go back"),
        ("1\ninf\n", "line 2: times must be finite, and not go back"),
        ("1\nsoon\n", "line 2: not a number of seconds"),
    ],
)
def test_what_is_no_trace(text: str, problem: str, tmp_path: Path) -> None:
    trace = tmp_path / "times.txt"
    trace.write_text(text)
    with pytest.raises(UsageError, match=problem):
        parse_settings({"arrival": str(trace)}, simulated=False, steps_required=True)


def test_an_earlier_run_gives_way_to_what_is_given_now() -> None:
    closed = {"steps": "1,2", "think_time": "1s", "method": "POST", "body_template": "{}", "seed": "3"}
    assert without_replaced(closed, {"rate": "5", "method": "get"}) == {"method": "POST", "seed": "3"}
    assert without_replaced({"rate": "5", "arrival": "poisson", "max_in_flight": "9"}, {"steps": "5"}) == {}
    assert without_replaced({"rate": "5", "arrival": "poisson"}, {"rate": "9"}) == {"rate": "5", "arrival": "poisson"}
    assert without_replaced({"ca_file": "x"}, {"insecure": True}) == {}


@pytest.mark.parametrize("url", ["http://[::1", "http://h:0", "http://h:x", "ftp://h", "h:1", "http://"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(UsageError, match="is no URL"):
        parse_settings({"host": url}, simulated=False, steps_required=True)


def test_a_url_with_a_password_is_refused() -> None:
    with pytest.raises(UsageError, match="--api-key-env"):
        parse_settings({"host": "http://u:p@h:1"}, simulated=False, steps_required=True)


def test_click_locust_and_make_agree_with_the_table() -> None:
    command = [sys.executable, "-m", "loadgen.cli", "run", "--help"]
    click_help = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    make_help = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for option in RUN_OPTIONS:
        assert f"--{option.name} {option.metavar or ''}" in click_help
        assert f"\n  {option.key.upper()} " in make_help
    program = (
        "import loadgen.users\nfrom locust.argument_parser import get_parser\n"
        "actions = {a.dest: a for a in get_parser(())._actions}\n"
        f"for option in {[(option.key, option.env) for option in SCENARIO_OPTIONS]}:\n"
        "    assert actions[option[0]].env_var == option[1], option"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "HOME": "/nonexistent"})


def test_hosts_come_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    def agents(**texts: str) -> tuple[str, ...]:
        return parse_settings(texts, simulated=False, steps_required=False).watching.agents

    listed = tmp_path / "hosts"
    listed.write_text("gpu1\nroot@gpu2:2222  # the new one\n")
    assert agents() == ("local",)
    assert agents(agents="none") == ()
    assert agents(agents_file=str(listed)) == ("gpu1", "root@gpu2:2222")
    assert agents(agents="local,gpu1", agents_file=str(listed)) == ("local", "gpu1", "root@gpu2:2222")
    listed.write_text("gpu1:99999\n")
    with pytest.raises(UsageError, match=r"--agents-file: .*line 1: agent 'gpu1:99999' has no port"):
        agents(agents_file=str(listed))
