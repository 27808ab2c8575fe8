"""`loadgen plan`: how many replicas and GPUs a rate needs, of a measured run. Parses, makes one call, and prints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loadgen import rundir
from loadgen.cli_options import EPILOG, with_options
from loadgen.cli_output import as_json, form_option, output_option, write
from loadgen.errors import UsageError
from loadgen.option import Option, Reader
from loadgen.option_values import count, natural
from loadgen.slo import EXAMPLE, Objective, parse_slo

if TYPE_CHECKING:
    from analysis.sizing import Demand

_OPTIONS = (
    Option("target-qps", "N", None, "successful requests/s that are to be served"),
    Option("slo", "LIST", None, "objectives that must hold, such as ttft_p99<1s,itl_p99<80ms,error_rate<2%"),
    Option("headroom", "SHARE", "20%", "what ordinary operation leaves free of the capacity within the SLO"),
    Option("spare", "N", "1", "replicas on top, for when some are lost"),
    Option("gpu-hour", "PRICE", None, "price of a GPU for an hour, in any currency; without: no cost"),
    Option("gpus-per-replica", "N", None, "GPUs of one replica; default: all of the run that serve"),
)


@click.command(epilog=EPILOG)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path))
@with_options(_OPTIONS)
@form_option("text", "json", "html")
@output_option
def plan(directory: Path, form: str, output: Path | None, **texts: Any) -> None:
    """Plan capacity from RUN: its knee, the most it holds within an SLO, and what a target rate needs.

    \b
    loadgen plan runs/latest --target-qps 1000 --slo "ttft_p99<1s"
    loadgen plan runs/latest --target-qps 1000 --slo "ttft_p99<1s,error_rate<2%" --gpus-per-replica 2 --gpu-hour 3.5
    loadgen plan runs/latest --target-qps 300 --slo "e2e_p95<3s" --headroom 30% --spare 2 --format json
    loadgen plan runs/latest --target-qps 1000 --slo "ttft_p99<1s" --format html --output plan.html
    """
    demand = demand_of(texts)
    if form == "html" and output is None:
        raise UsageError("--format html needs a file to write to: give --output plan.html")
    rundir.read_manifest(directory)

    from analysis.capacity import plan as make_plan
    from analysis.plan_tables import as_text
    from analysis.report.saved import summary_of

    made = make_plan(summary_of(directory.resolve()), demand)
    if form == "html":
        from analysis.report.plan_page import page

        write(output, page(made))
    elif form == "json":
        write(output, as_json(made.plan))
    else:
        write(output, as_text(made.plan))


def demand_of(texts: dict[str, Any]) -> Demand:
    """What is asked for, of option texts. Raises UsageError with every problem, one a line."""
    from analysis.sizing import Demand

    reader = Reader(_OPTIONS, texts)
    target_qps = reader.take("target_qps", _above_zero, None)
    nothing: tuple[Objective, ...] = ()
    slo = reader.take("slo", parse_slo, nothing)
    headroom = reader.take("headroom", _part, 0.0)
    spare = reader.take("spare", natural, 0)
    gpu_hour = reader.take("gpu_hour", _above_zero, None)
    gpus_per_replica = reader.take("gpus_per_replica", count, None)
    problems = list(reader.problems)
    if not texts.get("target_qps"):
        problems.append("--target-qps: how many requests/s are to be served? Give a number, such as 1000")
    if not texts.get("slo"):
        problems.append(f"--slo: what must hold? Give objectives, such as {EXAMPLE},error_rate<2%")
    if problems or target_qps is None:
        raise UsageError("\n".join(problems))
    return Demand(target_qps, slo, headroom, spare, gpu_hour, gpus_per_replica)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{text!r} is no number above 0")
    return value


def _part(text: str) -> float:
    """A share as 20% or 0.2, of which something is left."""
    number = text.strip()
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UsageError(f"{text!r} is no share: give one from 0% to below 100%, such as 20%")
    return value
