"""`loadgen scaling`: what more cards bring, of runs with different numbers of them. Parses, makes one call, prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen import rundir
from loadgen.cli_options import EPILOG, with_options
from loadgen.cli_output import as_json, form_option, output_option, write
from loadgen.errors import UsageError
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
@form_option("text", "json", "html")
@output_option
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

        write(output, page(found))
    elif form == "json":
        write(output, as_json(found))
    else:
        write(output, as_text(found))


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
    real = [directory.resolve() for directory in directories]
    for run in dict.fromkeys(run for run in real if real.count(run) > 1):
        problems.append(f"{run.name} is named twice: give each run once")
    if cards is not None and len(cards) != len(directories):
        problems.append(
            f"--gpus: {len(cards)} number(s) for {len(directories)} run(s): give one for each, in their order"
        )
    if problems:
        raise UsageError("\n".join(problems))
    return Asked(slo, cards)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))
