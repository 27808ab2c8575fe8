"""What commands share: the options of our tables as click takes them, and the exit codes under each help text."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click

from loadgen.errors import EXIT_CODES
from loadgen.option import Option

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<5}{text}" for code, text in EXIT_CODES.items())

Command = Callable[..., None]


class Lines(click.types.StringParamType):
    """Text of an option that may be repeated: on lines of its own in the environment, where click splits at spaces."""

    envvar_list_splitter = "\n"


class Names(click.types.StringParamType):
    """The same of an argument, between commas."""

    envvar_list_splitter = ","


def with_options(options: Iterable[Option]) -> Callable[[Command], Command]:
    """A decorator of a command: the options reach it by their keys, those that may be repeated as tuples."""
    listed = tuple(options)

    def decorate(command: Command) -> Command:
        for option in reversed(listed):
            command = click.option(
                f"--{option.name}",
                metavar=option.metavar,
                is_flag=option.metavar is None,
                multiple=option.many,
                type=Lines() if option.many else None,
                envvar=option.env,
                help=option.help + (f"  [default: {option.default}]" if option.default else ""),
            )(command)
        return command

    return decorate
