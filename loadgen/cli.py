"""The `loadgen` command: parses, makes one call, and turns what comes of it into an exit code. The composition root."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadgen import lifeline, rundir
from loadgen.errors import EXIT_CODES, Interrupted, LoadgenError, RunAborted, TargetError, UsageError
from loadgen.options import RUN_OPTIONS, Settings, parse_settings

_TABLE_WIDTH = 200  # more than the table has; a narrow terminal wraps its lines
_SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
_EXIT_CODES = "\b\nExit codes:\n" + "\n".join(f"  {code:<5}{text}" for code, text in EXIT_CODES.items())


class _Line(click.types.StringParamType):
    """Text of an option that may be repeated: on lines of its own in the environment, where click splits at spaces."""

    envvar_list_splitter = "\n"


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(RUN_OPTIONS):
        command = click.option(
            f"--{option.name}",
            metavar=option.metavar,
            multiple=option.many,
            type=_Line() if option.many else None,
            envvar=option.env,
            help=option.help + (f"  [default: {option.default}]" if option.default else ""),
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


@click.group(cls=_Commands, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gpu-loadgen")
def main() -> None:
    """Load testing of GPU model endpoints: stepped load, GPU and host telemetry, curves and a report.

    \b
    loadgen run chat                              against the embedded simulator, on any laptop
    loadgen run chat --host http://gpu1:8000      against a real endpoint
    loadgen report runs/latest                    the report again, from the run directory alone
    """
    lifeline.hold()


@main.command(epilog=_EXIT_CODES)
@click.argument("scenario")
@_run_options
@click.option("--dry-run", is_flag=True, help="print the plan and what would be started, and start nothing")
def run(scenario: str, dry_run: bool, **texts: Any) -> None:
    """Run SCENARIO: the name of one of ours (chat), or the path of a Locust file of your own.

    \b
    loadgen run chat --concurrency 5000
    loadgen run chat --host http://gpu1:8000 --steps 100,1000,5000 --step-time 60s --agents local
    loadgen run ./my_scenario.py --host https://api.example.com --api-key-env API_KEY --step-requests 500
    """
    from loadgen import conductor

    path = _scenario_path(scenario)
    texts["header"] = "\n".join(texts["header"])
    settings = parse_settings(texts, simulated=not texts["host"], steps_required=True)
    if dry_run:
        _print_plan(path, settings, settings.workers or conductor.default_workers())
        return
    directory, settings = conductor.prepare(path, settings)
    click.echo(f"run directory: {directory}", err=True)
    try:
        conductor.conduct(directory, path, settings)
    finally:
        summary = _report(directory)
    _raise_for(directory, summary)


@main.command(epilog=_EXIT_CODES)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
def report(directory: Path) -> None:
    """Build the report of RUN again, from its directory alone.

    \b
    loadgen report runs/latest
    """
    rundir.read_manifest(directory)
    _report(directory.resolve())


@main.command(epilog=_EXIT_CODES)
@click.option("--bind", "host", default="127.0.0.1", show_default=True, help="address to listen on")
@click.option("--port", type=int, default=8000, show_default=True, help="port to listen on; 0: any free one")
@click.option("--replicas", type=int, default=8, show_default=True, help="replicas, one simulated GPU each")
@click.option("--gpu", default="L4", show_default=True, help="L4, A100-80G, H100 or H200")
@click.option("--model", default="8b", show_default=True, help="8b or 70b")
@click.option("--dtype", default="bf16", show_default=True, help="bf16 or fp8")
@click.option("--slots", type=int, default=128, show_default=True, help="sequences that a replica runs at once")
@click.option("--seed", type=int, default=0, show_default=True, help="seed of tokens and jitter")
@click.option("--truth", type=click.Path(path_type=Path), help="file for the truth log, one line a request")
def simulator(**options: Any) -> None:
    """Serve the simulator in the foreground: an OpenAI-compatible endpoint on modelled GPUs. Ctrl-C ends it.

    \b
    loadgen simulator --port 8000 --gpu H100 --replicas 2
    curl http://127.0.0.1:8000/v1/models
    """
    from loadgen.simulator.config import SimulatorConfig
    from loadgen.simulator.server import run as serve

    def announce(url: str) -> None:
        click.echo(f"simulator: {url} (simulated GPUs: {options['replicas']} x {options['gpu']})")

    serve(SimulatorConfig(**options), announce)


def _scenario_path(scenario: str) -> Path:
    """Raises UsageError."""
    by_path = scenario.endswith(".py") or "/" in scenario
    path = Path(scenario).resolve() if by_path else _SCENARIOS / f"{scenario}.py"
    if not path.is_file():
        ours = ", ".join(sorted(file.stem for file in _SCENARIOS.glob("*.py") if file.stem != "__init__"))
        raise UsageError(f"there is no scenario {scenario!r}: give one of {ours}, or the path of a Locust file")
    return path


def _print_plan(scenario: Path, settings: Settings, workers: int) -> None:
    target = settings.host or "the embedded simulator (simulated GPUs)"
    model = settings.model or "the first that the endpoint lists"
    plan = settings.plan
    click.echo(f"scenario  {scenario}\ntarget    {target}, model: {model}")
    click.echo(f"request   {settings.prompt_tokens} prompt tokens, {settings.output_tokens} output tokens")
    for step in plan.steps:
        ends = [f"{step.duration_s:g} s"] if step.duration_s is not None else []
        ends += [f"{step.requests} requests"] if step.requests is not None else []
        click.echo(f"step      {step.level} {step.unit} for {' or '.join(ends)}")
    click.echo(f"starts    1 Locust master, {workers} worker(s), agents: {', '.join(settings.agents) or 'none'}")
    click.echo(f"writes    a directory under {settings.runs_dir}")


def _report(directory: Path) -> dict[str, Any]:
    from rich.console import Console
    from rich.table import Table

    from analysis.report.build import build
    from analysis.tables import step_table

    built = build(directory)
    headers, rows = step_table(built.summary)
    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header.replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=_TABLE_WIDTH).print(table)
    for step in built.summary["steps"]:
        for caveat in step["caveats"]:
            click.echo(f"{step['level']} {step['unit']}: {caveat['text']}; {caveat['remedy']}")
    for caveat in built.summary["caveats"]:
        click.echo(f"run: {caveat['text']}; {caveat['remedy']}")
    click.echo(f"report: {built.html}")
    return built.summary


def _raise_for(directory: Path, summary: dict[str, Any]) -> None:
    """The exit code of a run that was conducted to its end, whatever that was."""
    manifest = rundir.read_manifest(directory)
    if manifest["status"] == rundir.INTERRUPTED:
        raise Interrupted("interrupted; the report shows what was measured")
    if manifest["status"] != rundir.COMPLETE:
        raise RunAborted(f"the run was aborted: {manifest['reason']}; the report shows what was measured")
    if any(event["kind"] == "locust_mismatch" for event in rundir.read_lines(directory / rundir.EVENTS)):
        raise LoadgenError(
            f"Locust counted {manifest['locust']}, but {manifest['recorded']} were recorded: do not trust this run"
        )
    if not any(step["ok"] for step in summary["steps"]):
        errors = ", ".join(sorted({kind for step in summary["steps"] for kind in step["errors"]})) or "no answer"
        raise TargetError(f"no request succeeded ({errors}): the report shows the errors")


if __name__ == "__main__":
    sys.exit(main())
