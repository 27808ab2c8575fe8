"""The only Locust glue: options, traps, and what a master and a worker do. docs/locust.md lists the traps.

Scenarios import it through `loadgen.users`; `install` is idempotent and only registers listeners. Which role a process
plays is known at Locust's `init` event.
"""

from __future__ import annotations

from typing import Any

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, Runner, WorkerRunner

from loadgen.locust_plugin import traps, web_form
from loadgen.locust_plugin.master import Master
from loadgen.locust_plugin.worker import Worker
from loadgen.option import ENV_PREFIX
from loadgen.options import SCENARIO_OPTIONS

__all__ = ["Environment", "install", "worker_of"]

_workers: dict[int, Worker] = {}
_installed = False


def install() -> None:
    """Register the listeners and defuse Locust's traps, once a process."""
    global _installed
    if _installed:
        return
    _installed = True
    traps.defuse()
    events.init_command_line_parser.add_listener(_add_options)
    events.init.add_listener(_begin)


def worker_of(environment: Environment) -> Worker:
    """The worker that an environment's users send through."""
    return _workers[id(environment)]


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    # Locust fires this again for each page of its web UI: it must be cheap. Options in groups would not show there.
    for option in SCENARIO_OPTIONS:
        kind: dict[str, Any] = {"metavar": option.metavar, "default": option.default or ""}
        parser.add_argument(
            f"--{option.name}",
            env_var=option.env,
            help=option.help.replace("%", "%%"),
            include_in_web_ui=option.name not in ("header", "runs-dir"),
            **(kind if option.metavar is not None else {"action": "store_true"}),
        )
    parser.add_argument(
        "--run-dir",
        default="",
        env_var=ENV_PREFIX + "RUN_DIR",
        include_in_web_ui=False,
        help="an existing run directory to write to, instead of a new one under --runs-dir",
    )
    parser.set_defaults(web_host="127.0.0.1", master_bind_host="127.0.0.1")


def _begin(environment: Environment, runner: Runner, web_ui: Any, **_: Any) -> None:
    if isinstance(runner, (WorkerRunner, LocalRunner)):
        _workers[id(environment)] = Worker(environment, runner)
    if isinstance(runner, (MasterRunner, LocalRunner)):
        local = _workers.get(id(environment))
        master = Master(environment, runner, local.report if local is not None else None)
        if web_ui is not None:
            traps.close_web_ui(web_ui.app)
            web_form.check(web_ui.app, environment, master.plan_load)
