"""A Locust file: FastHttpUser, the stream read by `readline`, no JSON parsed.

Locust's own `iter_lines` waits for 1024 bytes and would be late by a second. Its keep-alive ends where a process has
more than 1024 open files; that is left as it is. BENCH_PATH, BENCH_BODY and BENCH_OUT in the environment are settings.
"""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task

PATH, BODY = os.environ["BENCH_PATH"], os.environ["BENCH_BODY"]
OUT = Path(os.environ["BENCH_OUT"])
STREAMED = '"stream":true' in BODY
ordinals = itertools.count()
lines: list[str] = []


class Client(FastHttpUser):
    @task
    def ask(self) -> None:
        identity = f"locust-{next(ordinals)}"
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "x-request-id": identity}
        tokens, first, last, before_last = -1, 0, 0, 0  # the event with the finish reason is no token
        sent = time.time_ns()
        if STREAMED:
            with self.client.post(PATH, data=BODY, headers=headers, stream=True, catch_response=True) as answer:
                ok = answer.status_code == 200
                if ok:
                    readline = answer._response.readline
                    while line := readline(b"\n"):
                        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                            before_last, last = last, time.time_ns()
                            tokens += 1
                            first = first or last
        else:
            ok = self.client.post(PATH, data=BODY, headers=headers).status_code == 200
        lines.append(f"{identity},{sent},{first},{before_last},{time.time_ns()},{tokens},{int(ok)}\n")


@events.quitting.add_listener
def write(**_: Any) -> None:
    OUT.write_text("".join(lines))
