"""A closed loop of users with aiohttp: one session, one task a user, the stream read line by line, no JSON parsed.

    python aiohttp_client.py URL USERS SECONDS STAGGER_S BODY OUT.csv [--ca-file FILE] [--uvloop]

The shape of `vllm bench serve`. Ends after SECONDS; what is then under way is not recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import ssl
import time
from pathlib import Path

import aiohttp

ordinals = itertools.count()


async def user(session: aiohttp.ClientSession, url: str, body: bytes, wait_s: float, lines: list[str]) -> None:
    await asyncio.sleep(wait_s)
    while True:
        identity = f"aiohttp-{next(ordinals)}"
        tokens, first, last = -1, 0, 0  # the event with the finish reason is none
        sent = time.time_ns()
        try:
            async with session.post(url, data=body, headers={"x-request-id": identity}) as answer:
                if answer.content_type == "text/event-stream":
                    async for line in answer.content:
                        if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                            now = time.time_ns()
                            tokens += 1
                            if not first:
                                first = now
                            last, before_last = now, last
                    last = before_last
                else:
                    await answer.read()
            ok = answer.status == 200
        except (aiohttp.ClientError, OSError):
            ok = False
        lines.append(f"{identity},{sent},{first},{last},{time.time_ns()},{tokens},{int(ok)}\n")


async def load(options: argparse.Namespace, lines: list[str]) -> None:
    tls = ssl.create_default_context(cafile=options.ca_file) if options.ca_file else True
    connector = aiohttp.TCPConnector(limit=0, ssl=tls)
    timeout = aiohttp.ClientTimeout(total=120)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        waits = [options.stagger_s * number / options.users for number in range(options.users)]
        body = options.body.encode()
        users = [asyncio.create_task(user(session, options.url, body, wait, lines)) for wait in waits]
        await asyncio.sleep(options.seconds)
        for task in users:
            task.cancel()
        await asyncio.gather(*users, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("users", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("stagger_s", type=float)
    parser.add_argument("body")
    parser.add_argument("out", type=Path)
    parser.add_argument("--ca-file")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    lines: list[str] = []
    if options.uvloop:
        import uvloop

        uvloop.run(load(options, lines))
    else:
        asyncio.run(load(options, lines))
    options.out.write_text("".join(lines))


if __name__ == "__main__":
    main()
