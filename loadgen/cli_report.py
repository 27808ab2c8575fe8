"""`loadgen report`, and reports and tables as the other commands print them. Parses, makes one call, and prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen import rundir
from loadgen.cli_options import EPILOG, with_options
from loadgen.errors import UsageError
from loadgen.option import Option, Reader
from loadgen.option_values import json_file
from loadgen.slo import Objective, parse_slo

if TYPE_CHECKING:
    from analysis.analyse import Asked

_WIDTH = 200  # more than the tables have; a narrow terminal wraps their lines
_FORMATS = tuple(rundir.REPORT_FORMATS)
_OPTIONS = (
    Option("format", "LIST", "html", f"what to write, of {','.join(_FORMATS)}; html: all tables and figures too"),
    Option("slo", "LIST", None, "objectives, such as ttft_p99<1s,error_rate<2%; default: those of the run"),
    Option("model-config", "FILE", None, "config.json of the model; default: that of the run"),
)


@click.command(epilog=EPILOG)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@with_options(_OPTIONS)
@click.option("--ttft-protocol", is_flag=True, help="TTFT too with 5 % of the requests off each end: P50 and P90")
def report(directory: Path, ttft_protocol: bool, **texts: Any) -> None:
    """Build the report of RUN again, from its directory alone.

    \b
    loadgen report runs/latest
    loadgen report runs/latest --slo "ttft_p99<1s,error_rate<2%" --model-config ./config.json
    loadgen report runs/latest --format md,json
    loadgen report runs/latest --ttft-protocol
    """
    formats, asked = _asked(texts)
    rundir.read_manifest(directory)
    print_report(directory.resolve(), ttft_protocol, asked, formats)


def _asked(texts: dict[str, Any]) -> tuple[tuple[str, ...], Asked]:
    """Formats, and what else is asked for. Raises UsageError with every problem, one a line."""
    from analysis.analyse import Asked

    reader = Reader(_OPTIONS, texts)
    formats: tuple[str, ...] = _FORMATS[:1]
    formats = reader.take("format", _formats, formats)
    nothing: tuple[Objective, ...] = ()
    slo = reader.take("slo", parse_slo, nothing)
    config = reader.take("model_config", json_file, None)
    if reader.problems:
        raise UsageError("\n".join(reader.problems))
    return formats, Asked(slo=slo or None, model_config=None if config is None else Path(config))


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.lower().split(",") if name.strip())
    if not names or not set(names) <= set(_FORMATS):
        raise UsageError(f"{text!r} is none of {', '.join(_FORMATS)}: give one or more, with commas")
    return names


def print_table(headers: list[str], rows: list[list[str]], words: int = 0) -> None:
    """The first `words` columns are words, the others numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, header in enumerate(headers):
        narrow = header.replace(" ", "\n")
        table.add_column(narrow, justify="left" if number < words else "right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=_WIDTH).print(table)


def print_report(
    directory: Path,
    ttft_protocol: bool = False,
    asked: Asked | None = None,
    formats: tuple[str, ...] = _FORMATS[:1],
) -> dict[str, Any]:
    """Build the report, print what matters of it and where it is; its summary."""
    from analysis import host_tables, interval_tables, tables
    from analysis.analyse import NOTHING_ASKED
    from analysis.report.build import build
    from analysis.report.page import said

    with _progress() as progress:
        wanted = (asked or NOTHING_ASKED)._replace(progress=progress)
        built = build(directory, ttft_protocol=ttft_protocol, asked=wanted, formats=formats)
    summary = built.summary
    if any(step["level"] == 0 for step in summary["steps"]):  # a recording without a load
        for headers, rows in (host_tables.gpu_table(summary), host_tables.host_table(summary)):
            if rows:
                print_table(headers[1:], [row[1:] for row in rows], words=1)
    else:
        print_table(*tables.step_table(summary))
    if ttft_protocol:
        click.echo("TTFT, 5 % of the OK requests off each end:")
        print_table(*interval_tables.protocol_table(summary))
    for line in said(summary):
        click.echo(f"{line.word:<9}  {line.name:<13}  {line.text}")
    for step in summary["steps"]:
        for caveat in step["caveats"]:
            click.echo(f"{step['level']} {step['unit']}: {caveat['text']}; {caveat['remedy']}")
    for caveat in summary["caveats"]:
        click.echo(f"run: {caveat['text']}; {caveat['remedy']}")
    for path in built.paths:
        click.echo(f"report: {path}")
    return summary


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None] | None]:
    """What a report's progress is told to: a bar on a terminal, which goes when the report is there; else nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("report: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda stage, share: bar.update(task, description=stage, completed=share)
