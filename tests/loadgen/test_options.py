"""Options: one table, every problem at once, no secret in what is written down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from loadgen.errors import UsageError
from loadgen.options import RUN_OPTIONS, SCENARIO_OPTIONS, parse_settings
from loadgen.plan import default_levels, parse_duration
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
        "agents": "local,gpu7",
        "workers": "0",
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(texts, simulated=False, steps_required=True)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("--steps", "--step-time", "--host", "--prompt-tokens", "--header", "--extra-body", "--agents", "--workers"),
    ]
    assert "agent 'gpu7' is not known" in lines[-2]


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


def test_texts_and_settings_are_each_others_inverse() -> None:
    texts = {
        "host": "https://h:1/base",
        "model": "m",
        "steps": "1,20",
        "step_time": "90",
        "step_requests": "500",
        "prompt_tokens": "7",
        "output_tokens": "8",
        "timeout": "1m",
        "header": "A: b\nC: d",
        "extra_body": '{"x": [1]}',
        "api_key_env": "KEY",
        "method": "PUT",
        "url_path": "/v1/p?q=1",
        "body_template": '{"n": {{n}}}',
        "server_time": "header:x-queue-ms,field:a.b_us",
        "agents": "none",
        "metrics_url": "http://h:2/m",
        "gpus": "0,1",
        "label": "l",
        "notes": "n",
        "runs_dir": "r",
        "seed": "5",
        "workers": "3",
    }
    settings = parse_settings(texts, simulated=False, steps_required=True)
    assert parse_settings(settings.texts(), simulated=False, steps_required=True) == settings
    assert settings.texts().keys() == texts.keys()
    assert {option.key for option in RUN_OPTIONS} - texts.keys() == {"concurrency"}


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
        assert f"--{option.name} {option.metavar}" in click_help
        assert f"\n  {option.key.upper()} " in make_help
    program = (
        "import loadgen.users\nfrom locust.argument_parser import get_parser\n"
        "actions = {a.dest: a for a in get_parser(())._actions}\n"
        f"for option in {[(option.key, option.env) for option in SCENARIO_OPTIONS]}:\n"
        "    assert actions[option[0]].env_var == option[1], option"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "HOME": "/nonexistent"})
