"""The start form of Locust's web UI: our options in it are checked before the load starts, and steps lead it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, jsonify, request
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from loadgen.errors import UsageError


def check(app: Flask, environment: Environment, plan_load: Callable[[Mapping[str, Any]], None]) -> None:
    """Give the form's options to `plan_load` when the load is about to start; what is wrong is shown in the form."""

    def on_swarm() -> Response | None:
        starts = request.method == "POST" and request.path.endswith("/swarm")
        if not starts or environment.runner.state in (STATE_RUNNING, STATE_SPAWNING):
            return None
        try:
            plan_load({**vars(environment.parsed_options), **request.form})
        except UsageError as error:
            return jsonify({"success": False, "message": str(error), "host": environment.host})
        return None

    app.before_request(on_swarm)
