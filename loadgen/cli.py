"""The `loadgen` command: parses, makes one call, and turns what comes of it into an exit code. The composition root."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from loadgen import lifeline, rundir
from loadgen.agents.passphrases import unlock
from loadgen.cli_agents import agents
from loadgen.cli_compare import compare, history
from loadgen.cli_options import EPILOG, with_options
from loadgen.cli_output import form_option
from loadgen.cli_plan import plan
from loadgen.cli_report import print_report, print_table, report
from loadgen.cli_scaling import scaling
from loadgen.errors import Interrupted, LoadgenError, RunAborted, TargetError, UsageError
from loadgen.options import RUN_OPTIONS, Settings, parse_settings, without_replaced
from loadgen.simulator.config import OPTIONS as SIMULATOR_OPTIONS
from loadgen.simulator.config import from_options

_SIMULATOR_PORT = 8000
_SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"


def _simulator_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(SIMULATOR_OPTIONS):
        default = _SIMULATOR_PORT if option.name == "port" else option.default
        command = click.option(
            f"--{option.name}",
            option.field,
            type=click.Path(path_type=Path) if option.type is Path else option.type,
            is_flag=option.type is bool or None,
            default=default,
            show_default=option.type is not bool and default is not None,
            help=option.help,
        )(command)
    return command


class _Commands(click.Group):
    """Turns our errors into one message and their exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except LoadgenError as error:
            for line in str(error).splitlines():
                click.echo(f"error: {line}", err=True)
            context.exit(error.exit_code)


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gpu-loadgen")
def main() -> None:
    """Load testing of GPU model endpoints: stepped load, GPU and host telemetry, curves and a report.

    \b
    loadgen run chat                              against the embedded simulator, on any laptop
    loadgen run chat --host http://gpu1:8000      against a real endpoint
    loadgen report runs/latest                    the report again, from the run directory alone
    """
    lifeline.hold()


@main.command(epilog=EPILOG)
@click.argument("scenario", required=False)
@with_options(RUN_OPTIONS)
@click.option("--from", "earlier", metavar="RUN", type=click.Path(path_type=Path), help="repeat this run's options")
@click.option("--dry-run", is_flag=True, help="print the plan and what would be started, and start nothing")
def run(scenario: str | None, earlier: Path | None, dry_run: bool, **texts: Any) -> None:
    """Run SCENARIO: the name of one of ours (chat), or the path of a Locust file of your own.

    \b
    loadgen run chat --concurrency 5000
    loadgen run chat --host http://gpu1:8000 --steps 100,1000,5000 --step-time 60s --agents local
    loadgen run ./my_scenario.py --host https://api.example.com --api-key-env API_KEY --step-requests 500
    loadgen run chat --host http://gpu1:8000 --repeat 5 --label before
    loadgen run --from runs/latest --label after-the-upgrade
    """
    from loadgen import conductor, series

    texts["header"] = "\n".join(texts["header"])
    if earlier is not None:
        scenario, texts = _repeated(earlier, scenario, texts)
    if scenario is None:
        raise UsageError(f"which scenario? Give one of {_our_scenarios()}, the path of a Locust file, or --from RUN")
    path = _scenario_path(scenario)
    settings = parse_settings(texts, simulated=not texts.get("host"), steps_required=True)
    if dry_run:
        _print_plan(path, settings, settings.workers or conductor.default_workers())
        return
    unlock(settings.watching)
    done = series.conduct(path, settings, lambda line: click.echo(line, err=True), print_report, _raise_for)
    if len(done) > 1:
        click.echo(f"{len(done)} runs; as a side of a comparison: group:{done[0]}")


@main.command(epilog=EPILOG)
@with_options(RUN_OPTIONS)
@form_option("text", "json")
def doctor(form: str, **texts: Any) -> None:
    """Check the endpoint and this machine with the options of a run, and say what to do about each problem.

    \b
    loadgen doctor --host http://gpu1:8000 --concurrency 5000
    loadgen doctor --host https://api.example.com --api-key-env API_KEY --agents none --format json
    """
    from rich.console import Console

    from loadgen import conductor
    from loadgen.doctor import Verdict, as_json, diagnose
    from loadgen.doctor.show import show

    texts["header"] = "\n".join(texts["header"])
    settings = parse_settings(texts, simulated=not texts["host"], steps_required=True)
    unlock(settings.watching)
    settings = replace(settings, workers=settings.workers or conductor.default_workers())
    console, checks = Console(), []
    for check in diagnose(settings):
        checks.append(check)
        if form == "text":
            show(console, check)
    if form == "json":
        click.echo(json.dumps(as_json(checks), indent=1, ensure_ascii=False))
    failures = [check for check in checks if check.verdict is Verdict.FAILED]
    if failures:
        raise failures[0].error(f"failed checks: {', '.join(check.name for check in failures)}")


@main.command(epilog=EPILOG)
@click.option(
    "--runs-dir",
    default="runs",
    show_default=True,
    envvar="LOADGEN_RUNS_DIR",
    type=click.Path(path_type=Path),
    help="where the run directories are",
)
@form_option("text", "json")
def runs(runs_dir: Path, form: str) -> None:
    """List the runs, newest first: what each one was, and its figures at the step with the highest QPS.

    \b
    loadgen runs
    loadgen runs --runs-dir /data/runs --format json
    """
    from analysis.runs import list_runs, runs_table

    rows = list_runs(runs_dir)
    if form == "json":
        click.echo(json.dumps([row.to_dict() for row in rows], indent=1))
        return
    if not rows:
        click.echo(f"no runs in {runs_dir}")
        return
    print_table(*runs_table(rows), words=6)
    for row in rows:
        if row.problem:
            click.echo(f"{row.run_id}: {row.problem}")


@main.command(epilog=EPILOG)
@_simulator_options
def simulator(**options: Any) -> None:
    """Serve the simulator in the foreground: an OpenAI-compatible endpoint on modelled GPUs. Ctrl-C ends it.

    \b
    loadgen simulator --port 8000 --gpu H100 --replicas 2
    loadgen simulator --reset-rate 0.01 --stall-rate 0.01 --stall-s 10 --truth truth.csv
    curl http://127.0.0.1:8000/v1/models
    """
    from loadgen.simulator.server import run as serve

    config = from_options(options)

    def announce(url: str) -> None:
        speed = "" if config.speedup == 1 else f", all modelled times divided by {config.speedup:g}"
        click.echo(f"simulator: {url} (simulated GPUs: {config.replicas} x {config.gpu}{speed})")

    serve(config, announce)


main.add_command(agents)
main.add_command(compare)
main.add_command(history)
main.add_command(plan)
main.add_command(report)
main.add_command(scaling)


def _scenario_path(scenario: str) -> Path:
    """Raises UsageError."""
    by_path = scenario.endswith(".py") or "/" in scenario
    path = Path(scenario).resolve() if by_path else _SCENARIOS / f"{scenario}.py"
    if not path.is_file():
        raise UsageError(
            f"there is no scenario {scenario!r}: give one of {_our_scenarios()}, or the path of a Locust file"
        )
    return path


def _our_scenarios() -> str:
    return ", ".join(sorted(file.stem for file in _SCENARIOS.glob("*.py") if file.stem != "__init__"))


def _repeated(earlier: Path, scenario: str | None, texts: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Scenario and option texts of an earlier run, under what is given now. Raises RunDirError."""
    manifest = rundir.read_manifest(earlier)
    then = {key: text for key, text in manifest["options"].items() if isinstance(text, str)}
    repeat = manifest.get("repeat")
    number = repeat.get("number") if isinstance(repeat, dict) else None
    if isinstance(number, int) and then.get("seed", "").isdecimal():
        then["seed"] = str(int(then["seed"]) - number + 1)  # that of the first
    now = {key: text for key, text in texts.items() if text}
    if "host" in now:
        then.pop("model", None)
    elif manifest["target"]["simulated"]:
        then.pop("host", None)
    return scenario or manifest["scenario"]["path"], {**without_replaced(then, now), **now}


def _print_plan(scenario: Path, settings: Settings, workers: int) -> None:
    from loadgen.doctor.machine import estimate

    target = settings.host or "the embedded simulator (simulated GPUs)"
    model = settings.model or "the first that the endpoint lists"
    plan = settings.plan
    click.echo(f"scenario  {scenario}\ntarget    {target}, model: {model}")
    click.echo(f"request   {settings.prompt_tokens} prompt tokens, {settings.output_tokens} output tokens")
    for step in plan.steps:
        ends = [f"{step.duration_s:g} s"] if step.duration_s is not None else []
        ends += [f"{step.requests} requests"] if step.requests is not None else []
        ramp = f", after a ramp of {plan.ramp_s:g} s" if plan.ramp_s else ""
        click.echo(f"step      {step.level:g} {step.unit} for {' or '.join(ends)}{ramp}")
    if settings.repeat > 1:
        click.echo(f"repeats   {settings.repeat} runs, one after the other, each as told here")
    load_s = sum((step.duration_s or 0.0) + plan.ramp_s for step in plan.steps)
    requests, a_request, size = estimate(replace(settings, workers=workers))
    click.echo(f"takes     {load_s:.0f} s of load, and up to {plan.drain_s:.0f} s for the last answers")
    if plan.is_open:
        process = f"gamma process, CV {plan.cv:g}" if plan.cv is not None else plan.trace or f"{plan.arrival} process"
        click.echo(
            f"arrivals  {process}, seed {plan.seed}; what is due while {plan.max_in_flight} are in flight is dropped"
        )
        click.echo(f"requests  about {requests}")
    else:
        click.echo(f"requests  as many as the endpoint answers; at 200 tokens/s and user at most {requests}")
    bound = "about" if plan.is_open else "at most"
    click.echo(f"disk      {bound} {size / 1e6:.0f} MB: {a_request} B a request, telemetry, report")
    click.echo(
        f"starts    1 Locust master, {workers} worker(s), agents: {', '.join(settings.watching.agents) or 'none'}"
    )
    click.echo(f"writes    a directory under {settings.runs_dir}")


def _raise_for(directory: Path, summary: dict[str, Any]) -> None:
    """The exit code of a run that was conducted to its end, whatever that was."""
    manifest = rundir.read_manifest(directory)
    if manifest["status"] == rundir.INTERRUPTED:
        raise Interrupted("interrupted; the report shows what was measured")
    if manifest["status"] != rundir.COMPLETE:
        raise RunAborted(f"the run was aborted: {manifest['reason']}; the report shows what was measured")
    events = rundir.read_lines(directory / rundir.EVENTS)
    if any(event.get("kind") == "locust_mismatch" for event in events):
        raise LoadgenError(
            f"Locust counted {manifest['locust']}, but {manifest['recorded']} were recorded: do not trust this run"
        )
    raised = [event["text"] for event in events if event.get("kind") == "user_error"]
    if raised and not any(step["ok"] for step in summary["steps"]):
        raise UsageError(f"no request succeeded: {raised[0]}; see {directory / rundir.LOGS}")
    if not any(step["ok"] for step in summary["steps"]):
        errors = ", ".join(sorted({kind for step in summary["steps"] for kind in step["errors"]})) or "no answer"
        raise TargetError(f"no request succeeded ({errors}): the report shows the errors")


if __name__ == "__main__":
    sys.exit(main())
