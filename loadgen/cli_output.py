"""Where a command's result goes: `--output`, or the standard output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from loadgen.errors import LoadgenError

output_option = click.option(
    "--output", type=click.Path(path_type=Path), help="file to write to, instead of the standard output"
)


def form_option(*names: str) -> Any:
    """`--format`, as the parameter `form`; the first is the default."""
    kinds = click.Choice(names)
    return click.option("--format", "form", type=kinds, default=names[0], show_default=True, help="output")


def as_json(made: dict[str, Any]) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def write(output: Path | None, text: str) -> None:
    """Into the file, or to the standard output. Raises LoadgenError."""
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise LoadgenError(f"--output: cannot write {output}: {error.strerror}; name another file") from error
    click.echo(f"written: {output}", err=True)
