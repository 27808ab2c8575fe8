"""How much the simulator can emit on one core before its own lateness shows: tokens/s, lateness, CPU time a token.

    taskset -c 1 python benchmarks/simulator_capacity.py --users 5000 --replicas 12 --seconds 20

Twelve replicas of the default L4 emit about 21,000 tokens/s. The simulator is pinned to core 0; the client here only
reads, discards and asks again, every 2 ms, as the load generator does. CPU time a token is the figure to compare; the
lateness needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import select
import socket
import time
import urllib.request
from multiprocessing.connection import Connection
from pathlib import Path

from loadgen.simulator.config import SimulatorConfig
from loadgen.simulator.server import run

CORE = 0
NAP_S = 0.002
LATENESS = "simulator_emission_lateness_seconds_bucket"
BODY = json.dumps(
    {
        "model": "sim-8b",
        "stream": True,
        "max_tokens": 32,
        "messages": [{"role": "user", "content": " ".join(["word"] * 32)}],
    }
)
REQUEST = f"POST /v1/chat/completions HTTP/1.1\r\nhost: simulator\r\ncontent-length: {len(BODY)}\r\n\r\n{BODY}".encode()


def simulator(config: SimulatorConfig, announce: Connection, realtime: bool) -> None:
    os.sched_setaffinity(0, {CORE})
    if realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    run(config, announce.send)


def drive(port: int, users: int, seconds: float, ramp_s: float) -> None:
    """A closed loop of `users` connections."""
    poll = select.epoll()
    clients: dict[int, socket.socket] = {}
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + seconds:
        while len(clients) < users and now >= begin + ramp_s * len(clients) / users:
            client = socket.create_connection(("127.0.0.1", port))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[client.fileno()] = client
            poll.register(client, select.EPOLLIN | select.EPOLLET)
            client.send(REQUEST)
        for descriptor, _ in poll.poll(0, users):
            if clients[descriptor].recv(1 << 16).endswith(b"\r\n0\r\n\r\n"):
                clients[descriptor].send(REQUEST)
        time.sleep(NAP_S)


def snapshot(port: int, pid: int) -> dict[str, float]:
    """Seconds by clock, on the CPU and waiting for it; the metrics summed over replicas by name and bound."""
    ran_ns, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    sums = {"clock": time.monotonic(), "cpu": int(ran_ns) / 1e9, "waited": int(waited_ns) / 1e9}
    for name, bound, value in re.findall(r'^(simulator_\w+)\{.*?(?:le="(.*?)")?\} (\S+)$', text, re.M):
        sums[name + bound] = sums.get(name + bound, 0) + float(value)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--realtime", action="store_true", help="SCHED_FIFO, so that neighbours matter less; needs root"
    )
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    config = SimulatorConfig(replicas=options.replicas)
    process = multiprocessing.Process(target=simulator, args=(config, theirs, options.realtime))
    process.start()
    port = int(ours.recv().rsplit(":", 1)[1])
    client = multiprocessing.Process(target=drive, args=(port, options.users, options.seconds + 10, 5))
    client.start()
    time.sleep(9)  # the ramp and what follows it are not measured
    before = snapshot(port, process.pid or 0)
    time.sleep(options.seconds)
    after = snapshot(port, process.pid or 0)
    client.terminate()
    process.terminate()
    process.join()

    change = {name: after[name] - before[name] for name in after}
    tokens, wall_s = change["simulator_emissions_total"], change["clock"]
    print(f"tokens/s           {tokens / wall_s:,.0f} to {options.users} connections")
    print(f"CPU                {change['cpu'] / wall_s:.1%} of a core, {change['cpu'] / tokens * 1e6:.1f} us a token")
    print(f"waited for a CPU   {change['waited'] / wall_s:.1%} of the time: neighbours, which make tokens late too")
    print(f"late (over 5 ms)   {change['simulator_late_emissions_total'] / tokens:.3%}")
    buckets = [(name[len(LATENESS) :], count) for name, count in change.items() if name.startswith(LATENESS)]
    for quantile in (0.5, 0.9, 0.99, 0.999):
        print(f"lateness p{100 * quantile:<8g} up to {next(b for b, count in buckets if count >= quantile * tokens)} s")


if __name__ == "__main__":
    main()
