"""Reports and tables as the commands print them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_WIDTH = 200  # more than the tables have; a narrow terminal wraps their lines


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


def print_report(directory: Path, ttft_protocol: bool = False) -> dict[str, Any]:
    """Build the report, print what matters of it and where it is; its summary."""
    from analysis import host_tables, interval_tables, tables
    from analysis.report.build import build

    built = build(directory, ttft_protocol=ttft_protocol)
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
    for step in summary["steps"]:
        for caveat in step["caveats"]:
            click.echo(f"{step['level']} {step['unit']}: {caveat['text']}; {caveat['remedy']}")
    for caveat in summary["caveats"]:
        click.echo(f"run: {caveat['text']}; {caveat['remedy']}")
    click.echo(f"report: {built.html}")
    return summary
