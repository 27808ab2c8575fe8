"""`loadgen compare` and `loadgen history`: parse, make one call, print, and turn gates into an exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadgen.cli_options import EPILOG, with_options
from loadgen.cli_output import as_json, form_option, output_option, write
from loadgen.errors import GateFailed, LoadgenError, UsageError
from loadgen.gates import EXAMPLE, Gate, parse_gates
from loadgen.option import Option, Reader

_GATES = (
    Option("gate", "LIST", None, f"limits that decide the exit code, such as {EXAMPLE}"),
    Option("strict", None, None, "a gate that is not shown to hold fails too"),
    Option("allow", "KEY", None, "compare although KEY differs, such as model or steps; may be repeated", many=True),
)
_FIGURES = Option("figures", "DIR", None, "write the figures there too, as PNG and SVG")
_RUNS_DIR = Option("runs-dir", "DIR", "runs", "where runs are looked for that are named, not given as a path")
_FORMATS = ("text", "json", "md", "junit", "html")


@click.command(epilog=EPILOG)
@click.argument("base", metavar="BASE")
@click.argument("new", metavar="NEW")
@with_options((*_GATES, _RUNS_DIR, _FIGURES))
@form_option(*_FORMATS)
@output_option
def compare(base: str, new: str, form: str, output: Path | None, **texts: Any) -> None:
    """Compare NEW with BASE: what changed at each step, how surely, and whether it stays within the gates.

    A side is one run, or several repeats of one configuration: DIR, or DIR,DIR,…; group:DIR for all runs of
    `loadgen run --repeat` that DIR is one of; label:NAME for all complete runs of a label. Instead of a path the name
    of a run under --runs-dir will do. With one run a side the verdict is indicative only.

    \b
    loadgen compare runs/before runs/after
    loadgen compare label:v1 label:v2 --gate "ttft_p95<+20%,vram<+10%,error_rate<2%"
    loadgen compare group:runs/a group:runs/latest --gate "qps>-5%,e2e_p99<3s" --allow model
    loadgen compare a1,a2,a3 b1,b2,b3 --gate "ttft_p95<+20%" --format md --output comment.md
    """
    gates, wanted = _asked(texts, form, output)

    from analysis.compare import compare as make
    from analysis.sides import read_side

    sides = [
        read_side(name, asked, Path(texts["runs_dir"] or "runs")) for name, asked in (("BASE", base), ("NEW", new))
    ]
    made = make(sides[0], sides[1], gates, texts["allow"])
    strict = bool(texts["strict"])
    write(output, _shown(made, form, strict))
    if wanted is not None:
        from analysis.report.compare_page import save_figures

        _save(lambda folder: save_figures(made, folder), wanted)
    _raise_for(made, strict)


@click.command(epilog=EPILOG)
@click.argument("label", metavar="LABEL")
@with_options((_RUNS_DIR, _FIGURES))
@click.option("--step", metavar="LEVEL", help="the step that is looked at; default: the highest that most points have")
@form_option("text", "json", "html")
@output_option
def history(label: str, step: str | None, form: str, output: Path | None, **texts: Any) -> None:
    """Show the runs of LABEL over time: each figure from run to run, what changed in between, and whether it trends.

    LABEL may have * and ?. Repeats of one configuration (`loadgen run --repeat`) are one point.

    \b
    loadgen history nightly
    loadgen history "chat-v*" --step 500 --format html --output history.html
    """
    if form == "html" and output is None:
        raise UsageError("--format html needs a file to write to: give --output history.html")

    from analysis import history_tables
    from analysis.history import history as make

    made = make(label, Path(texts["runs_dir"] or "runs"), step)
    if form == "html":
        from analysis.report.history_page import page

        write(output, page(made))
    else:
        write(output, as_json(made) if form == "json" else history_tables.as_text(made))
    if texts["figures"]:
        from analysis.report.history_page import save_figures

        _save(lambda folder: save_figures(made, folder), Path(texts["figures"]))


def _asked(texts: dict[str, Any], form: str, output: Path | None) -> tuple[tuple[Gate, ...], Path | None]:
    """The gates, and the folder of the figures. Raises UsageError with every problem, one a line."""
    reader = Reader(_GATES, texts)
    none: tuple[Gate, ...] = ()
    gates = reader.take("gate", parse_gates, none)
    problems = list(reader.problems)
    if texts["gate"] == "":
        problems.append(f"--gate is empty, and nothing would be judged: give gates such as {EXAMPLE}, or leave it out")
    if form == "junit" and not texts.get("gate"):
        problems.append(f"--format junit has a test case a gate: give --gate {EXAMPLE}")
    if form == "html" and output is None:
        problems.append("--format html needs a file to write to: give --output compare.html")
    if texts.get("strict") and not texts.get("gate"):
        problems.append(f"--strict is about gates: give --gate {EXAMPLE}")
    if problems:
        raise UsageError("\n".join(problems))
    return gates, Path(texts["figures"]) if texts.get("figures") else None


def _shown(made: dict[str, Any], form: str, strict: bool) -> str:
    from analysis.report import compare_texts

    match form:
        case "json":
            return as_json(made)
        case "md":
            return compare_texts.as_markdown(made)
        case "junit":
            return compare_texts.as_junit(made, strict)
        case "html":
            from analysis.report.compare_page import page

            return page(made)
        case _:
            return compare_texts.as_text(made)


def _save(save: Callable[[Path], None], folder: Path) -> None:
    try:
        save(folder)
    except OSError as error:
        raise LoadgenError(f"--figures: cannot write to {folder}: {error.strerror}; name another folder") from error
    click.echo(f"figures: {folder}", err=True)


def _raise_for(made: dict[str, Any], strict: bool) -> None:
    """The exit code of the gates: GateFailed when one failed, could not be judged, or with `strict` is not shown."""
    from analysis.judgement import FAIL, NOT_MEASURED, NOT_SHOWN

    stops = {FAIL: "failed", NOT_MEASURED: "could not be judged"} | ({NOT_SHOWN: "not shown to hold"} if strict else {})
    found = [f"{gate['gate']} ({stops[gate['verdict']]})" for gate in made["gates"] if gate["verdict"] in stops]
    if found:
        raise GateFailed(f"gates: {', '.join(found)}")
