"""One table of options: it names every field, its ranges are checked, and the key stays out of sight."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from loadgen.cli import simulator
from loadgen.errors import UsageError
from loadgen.simulator.config import OPTIONS, SimulatorConfig, from_options, to_options, validate


def test_every_field_has_an_option_and_every_option_a_field() -> None:
    named = [option.field for option in OPTIONS]
    assert sorted(named) == sorted({field.name for field in fields(SimulatorConfig)} - {"api_key"} | {"api_key_env"})


def test_the_defaults_are_valid_and_every_range_is_checked() -> None:
    assert validate(SimulatorConfig()).slots == 128
    ranged = [option for option in OPTIONS if option.high is not None]
    with pytest.raises(UsageError) as caught:
        validate(SimulatorConfig(**{option.field: float("nan") for option in ranged if option.type is float}))
    nans = [line for line in str(caught.value).splitlines() if line.endswith(tuple("0123456789")) and "is nan" in line]
    assert len(nans) == sum(option.type is float for option in ranged)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"error_status": 200}, "simulator error-status is 200: give an HTTP status from 400 to 511"),
        (
            {"error_rate": 0.6, "reset_rate": 0.5},
            "the simulator's fault rates add up to more than 1: a request gets one fault at most",
        ),
        (
            {"power_limit_w": 16},
            "simulator power limit is 16 W: give more than 16 W, which L4 draws when idle, and at most 72 W",
        ),
        (
            {"temp_limit_c": 90},
            "simulator temperature limit is 90 C: give more than 30 C, which an idle GPU has, and at most 70 C",
        ),
        ({"max_batched_tokens": 200}, "simulator slots are 128: give 1 to 100, half of the batched tokens"),
        ({"speedup": 0}, "simulator speedup is 0: give 0.1 to 1000"),
    ],
)
def test_a_problem_is_one_sentence(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        validate(SimulatorConfig(**changes))
    assert str(caught.value) == problem


def test_a_config_is_told_to_another_process_by_its_options() -> None:
    config = SimulatorConfig(gpu="H100", slots=7, prefix_cache=True, power_limit_w=300.5, io_places=3)
    given = simulator.make_context("simulator", [*to_options(config), "--port", "0"]).params
    assert from_options(given) == config
    assert to_options(SimulatorConfig()) == []


def test_the_key_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_KEY", "s3cret")
    config = from_options({"api_key_env": "SIM_KEY", "replicas": 3})
    assert (config.api_key, config.replicas) == ("s3cret", 3)
    assert "s3cret" not in repr(config)
    assert from_options({"api_key_env": None}) == SimulatorConfig()


def test_a_missing_key_is_told_with_the_other_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIM_KEY", raising=False)
    with pytest.raises(UsageError) as caught:
        from_options({"api_key_env": "SIM_KEY", "replicas": 0, "gpu": "B200"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "the environment variable SIM_KEY (--api-key-env) is not set",
        "simulator replicas is 0",
        "simulator GPU 'B200' is unknown",
    ]
