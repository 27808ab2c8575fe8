"""Traps of Locust 2.47 that a process-wide change defuses; each is named as in docs/locust.md.

The others are avoided by how the rest of the plugin is built.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import gevent
from flask import Flask, abort, request
from locust import TaskSet, User, argument_parser, runners, stats
from locust.user.task import DefaultTaskSet

REPORT_INTERVAL_S = 1.0
# A wait time that is over: `TaskSet.wait` then goes on without a turn of the loop.
NO_TURN = -1.0
_TURN_NS = 2_000_000


def defuse() -> None:
    # T4: each spawn message built this dictionary once an option, about 100 ms of a stopped loop.
    argument_parser.default_args_dict = functools.cache(argument_parser.default_args_dict)
    # T6: 60 s after a worker was lost, Locust would start all users again from zero.
    runners.HEARTBEAT_DEAD_INTERNAL = -math.inf
    # T10: the stock screen rounds to two digits.
    stats.bucket_response_time = _three_digits
    logging.getLogger("locust.user.task").addFilter(FewTaskErrors(20))
    User.start = _starting_in_turn(User.start)
    runners.Runner.user_classes_count = property(_counting_at_once(runners.Runner.user_classes_count.fget))
    # T37: a task that follows at once would still wait for a turn of the loop.
    TaskSet._sleep = _sleep
    TaskSet.wait = _unless_it_goes_on(TaskSet.wait)
    TaskSet.wait_time = _asking_the_user(TaskSet.wait_time)
    DefaultTaskSet.get_next_task = _the_only_task_or(DefaultTaskSet.get_next_task)
    # The live table is refreshed each second; Locust's own statistics are reconciled from the same messages.
    runners.WORKER_REPORT_INTERVAL = REPORT_INTERVAL_S


def _sleep(_: TaskSet, seconds: float) -> None:
    if seconds != NO_TURN:
        gevent.sleep(seconds)


def _unless_it_goes_on(wait: Callable[[TaskSet], None]) -> Callable[[TaskSet], None]:
    def wait_or_go_on(tasks: TaskSet) -> None:
        goes_on = getattr(tasks.user, "goes_on", None)
        if goes_on is None or not goes_on():
            wait(tasks)

    return wait_or_go_on


def _the_only_task_or(choose: Callable[[TaskSet], Any]) -> Callable[[TaskSet], Any]:
    def next_task(tasks: TaskSet) -> Any:
        possible = tasks.user.tasks
        return possible[0] if len(possible) == 1 else choose(tasks)

    return next_task


def _asking_the_user(wait_time: Callable[[TaskSet], float]) -> Callable[[TaskSet], float]:
    """A scenario's own wait time must not stand in the way of the run's: `ModelUser.between_tasks` knows both."""

    def asked(tasks: TaskSet) -> float:
        between_tasks = getattr(tasks.user, "between_tasks", None)
        return wait_time(tasks) if between_tasks is None else between_tasks(lambda: wait_time(tasks))

    return asked


def _starting_in_turn(start: Callable[..., Any]) -> Callable[..., Any]:
    """T36: many users are made in one go, and for so long nothing is read: let the loop go round in between."""
    turned_ns = 0

    def start_in_turn(user: User, group: Any) -> Any:
        nonlocal turned_ns
        greenlet = start(user, group)
        if time.monotonic_ns() - turned_ns > _TURN_NS:
            gevent.sleep(0)
            turned_ns = time.monotonic_ns()
        return greenlet

    return start_in_turn


def _counting_at_once(count: Callable[[runners.Runner], dict[str, int]]) -> Callable[[runners.Runner], dict[str, int]]:
    """T38: each report counts users one by one, 3 ms with 5000. Those of one class, the usual case, are known."""

    def user_classes_count(runner: runners.Runner) -> dict[str, int]:
        classes = runner.user_classes
        return {classes[0].__name__: runner.user_count} if len(classes) == 1 else count(runner)

    return user_classes_count


def _three_digits(milliseconds: float) -> float:
    if milliseconds < 1000:
        return round(milliseconds)
    return round(milliseconds, 2 - math.floor(math.log10(milliseconds)))


def close_web_ui(app: Flask) -> None:
    """T21: the web UI answers pages of its own origin only, and tells no browser otherwise."""
    for functions in app.after_request_funcs.values():
        functions[:] = [function for function in functions if not function.__module__.startswith("flask_cors")]
    for name in ("handle_exception", "handle_user_exception"):
        vars(app).pop(name, None)  # flask_cors wraps these two of Flask's own

    def same_origin() -> None:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            abort(403)

    app.before_request(same_origin)


class FewTaskErrors(logging.Filter):
    """A task that always fails would fill the disk with tracebacks: after some, the rest is only counted by Locust."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def filter(self, record: logging.LogRecord) -> bool:
        self._left -= 1
        if self._left == 0:
            record.msg, record.args = f"{record.getMessage()} (further errors of tasks are not logged)", None
        return self._left >= 0


def before_start(runner: runners.Runner, listener: Callable[[int], None]) -> None:
    """Call `listener` with the number of users whenever Locust is asked for another one; it has no event for that."""
    start = runner.start

    def announced(user_count: int, *arguments: Any, **options: Any) -> None:
        listener(user_count)
        start(user_count, *arguments, **options)

    runner.start = announced


def refuse_late_workers(runner: runners.MasterRunner, started: Callable[[], bool]) -> None:
    """T7: a worker that joins after the start would rebalance the users, or stay idle. It is told to quit."""
    handle = runner.handle_message

    def guarded(client_id: str, message: Any) -> None:
        if message.type == "client_ready" and started() and client_id not in runner.worker_indexes:
            runner.server.send_to_client(type(message)("quit", None, client_id))
            return
        handle(client_id, message)

    runner.handle_message = guarded
