"""`loadgen scaling`: what more cards bring, of runs with different numbers of them. Parses, makes one call, prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen import rundir
from loadgen.cli_options import EPILOG, with_options
from loadgen.errors import LoadgenError, UsageError
from loadgen.option import Option, Reader
from loadgen.option_values import count
from loadgen.slo import Objective, parse_slo

if TYPE_CHECKING:
    from analysis.scaling import Asked

_OPTIONS = (
    Option("gpus", "N,N,…", None, "cards of each run, in their order; default: as the simulator or the agents tell"),
    Option("slo", "LIST", None, "also the largest load within these objectives, such as ttft_p99<1s,error_rate<2%"),
)


@click.command(epilog=EPILOG)
@click.argument("directories", metavar="RUN RUN…", nargs=-1, type=click.Path(path_type=Path))
@with_options(_OPTIONS)
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "html"]), default="text", show_default=True, help="output"
)
@click.option("--output", type=click.Path(path_type=Path), help="file to write to, instead of the standard output")
def scaling(directories: tuple[Path, ...], form: str, output: Path | None, **texts: Any) -> None:
    """Speed-up and efficiency over cards, of runs at 1, 2, 4, … replicas or GPUs; and what eats the rest.

    \b
    loadgen scaling runs/*-one runs/*-two runs/*-four runs/*-eight
    loadgen scaling runs/tp1 runs/tp2 --gpus 1,2 --slo "ttft_p99<1s"
    loadgen scaling runs/one runs/two runs/four --format html --output scaling.html
    """
    asked = _asked(directories, texts)
    if form == "html" and output is None:
        raise UsageError("--format html needs a file to write to: give --output scaling.html")
    comparable = tuple(rundir.read_manifest(directory).get("comparable") or {} for directory in directories)

    from analysis.report.saved import summary_of
    from analysis.scaling import scaling as compare
    from analysis.scaling_tables import as_text

    found = compare(
        [summary_of(directory.resolve()) for directory in directories], asked._replace(comparable=comparable)
    )
    if form == "html":
        from analysis.report.scaling_page import page

        _write(output, page(found))
    elif form == "json":
        _write(output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    else:
        _write(output, as_text(found))


def _asked(directories: tuple[Path, ...], texts: dict[str, Any]) -> Asked:
    """Raises UsageError with every problem, one a line."""
    from analysis.scaling import Asked

    reader = Reader(_OPTIONS, texts)
    unknown: tuple[int, ...] | None = None
    nothing: tuple[Objective, ...] = ()
    cards, slo = reader.take("gpus", _counts, unknown), reader.take("slo", parse_slo, nothing)
    problems = list(reader.problems)
    if len(directories) < 2:
        problems.append("which runs? Give two or more, with different numbers of cards")
    if cards is not None and len(cards) != len(directories):
        problems.append(
            f"--gpus: {len(cards)} number(s) for {len(directories)} run(s): give one for each, in their order"
        )
    if problems:
        raise UsageError("\n".join(problems))
    return Asked(slo, cards)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _write(output: Path | None, text: str) -> None:
    """Into the file, or to the standard output. Raises LoadgenError."""
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise LoadgenError(f"--output: cannot write {output}: {error.strerror}; name another file") from error
    click.echo(f"scaling: {output}", err=True)
