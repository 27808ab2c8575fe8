"""Locust's own command line, in a child of ours: `python -m loadgen.locust …` takes Locust's arguments.

The lifeline is held before Locust patches the process. Locust's configuration files of the working directory and the
home directory are not read: a run is what its options say.
"""

from __future__ import annotations

import sys

from loadgen import lifeline

if __name__ == "__main__":
    lifeline.hold()

    from locust import argument_parser

    for function in (argument_parser.get_parser, argument_parser.get_empty_argument_parser):
        function.__defaults__ = tuple(
            () if default is argument_parser.DEFAULT_CONFIG_FILES else default for default in function.__defaults__
        )

    from locust.main import main

    sys.exit(main())
