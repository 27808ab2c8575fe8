from __future__ import annotations

from pathlib import Path

import pytest

from remote_agents.hosts import Agent, check_agents, metrics_urls, parse_agent, read_agents_file, server_port


@pytest.mark.parametrize(
    ("text", "user", "host", "port"),
    [
        ("local", None, "local", None),
        ("none", None, "none", None),
        ("gpu1", None, "gpu1", None),
        ("gpu-1.example.com:22", None, "gpu-1.example.com", 22),
        ("user@gpu2:2222", "user", "gpu2", 2222),
        ("user@domain@gpu2", "user@domain", "gpu2", None),
        (r"DOMAIN\user@gpu2", r"DOMAIN\user", "gpu2", None),
        ("[::1]:22", None, "::1", 22),
        ("[::1]", None, "::1", None),
        ("2001:db8::1", None, "2001:db8::1", None),
        ("user@[fe80::1%eth0]:22", "user", "fe80::1%eth0", 22),
    ],
)
def test_the_parts_of_an_agent(text: str, user: str | None, host: str, port: int | None) -> None:
    assert parse_agent(text) == Agent(text, user, host, port)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no host: write HOST, USER@HOST or USER@HOST:PORT, an IPv6 address in [brackets]"),
        ("user@", "is no host: "),
        ("two words", "is no host: "),
        ("-oProxyCommand=reboot", "is no host: "),
        ("$(reboot)", "is no host: "),
        ("a/b", "is no host: "),
        ("@gpu1", "has no user's name before the @: ''"),
        ("-l@gpu1", "has no user's name before the @: '-l'"),
        ("a;b@gpu1", "has no user's name before the @: 'a;b'"),
        ("gpu1:", "has no port after the colon: ''; ports are 1 to 65535"),
        ("gpu1:ssh", "has no port after the colon: 'ssh'"),
        ("gpu1:0", "has no port after the colon: '0'"),
        ("gpu1:65536", "has no port after the colon: '65536'"),
        ("[::1", "has no IPv6 address in its brackets: write it as [::1] or [::1]:22"),
        ("[::1]22", "has no IPv6 address in its brackets"),
        ("[gpu1]:22", "has no IPv6 address in its brackets"),
        ("[fe80::1%;reboot]", "is no host: "),
    ],
)
def test_what_is_no_agent_is_one_sentence(text: str, problem: str) -> None:
    (said,) = check_agents([text])
    assert said.startswith(f"agent {text!r} {problem}")


def test_which_agents_go_together() -> None:
    assert check_agents(["local"]) == check_agents(["none"]) == check_agents([]) == []
    assert check_agents(["gpu1", "local", "user@gpu2:2222"]) == []
    assert check_agents(["none", "local"]) == [
        "agent 'none' cannot be combined with others: give it alone, or leave it out"
    ]


def test_a_file_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# our hosts\n\ngpu1   # the first\n  user@gpu2:2222\n[::1]:22#not a comment\nlocal\n")
    names, problems = read_agents_file(path)
    assert names == ["gpu1", "user@gpu2:2222", "[::1]:22#not a comment", "local"]
    assert problems == [
        f"{path}, line 5: agent '[::1]:22#not a comment' has no port after the colon: '22#not a comment'; "
        "ports are 1 to 65535"
    ]


def test_what_is_wrong_with_a_file_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("gpu1\ngpu:x\ngpu1\nnone\n")
    assert read_agents_file(path) == (
        ["gpu1", "gpu:x", "none"],
        [
            f"{path}, line 2: agent 'gpu:x' has no port after the colon: 'x'; ports are 1 to 65535",
            f"{path}, line 3: agent 'gpu1' is named again, first in line 1: leave one out",
            f"{path}: agent 'none' cannot be combined with others: give it alone, or leave it out",
        ],
    )
    path.write_text("# nobody\n")
    assert read_agents_file(path) == ([], [f"{path} names no host: write one a line"])
    path.write_bytes(b"\xff\xfe")
    assert "(it is no text): name a file with one host a line" in read_agents_file(path)[1][0]
    assert read_agents_file(tmp_path / "none")[1] == [
        f"the hosts in {tmp_path / 'none'} cannot be read (No such file or directory): name a file with one host a line"
    ]


@pytest.mark.parametrize(
    ("agents", "endpoint", "given", "urls"),
    [
        (["local"], "https://model:8000/", None, ["https://model:8000/metrics"]),
        (["local"], None, None, [None]),
        ([], "http://model:8000", None, []),
        (["gpu1", "gpu2"], "http://model:8000", None, ["http://127.0.0.1:8000/metrics"] * 2),
        (["local", "gpu1"], "https://model", None, [None, "https://127.0.0.1:443/metrics"]),
        (["gpu1"], None, None, [None]),
        (["local", "gpu1"], "http://model", "http://localhost:9/m", ["http://localhost:9/m"] * 2),
        (["gpu1", "gpu2"], "http://model", "http://127.0.0.7:9/m", ["http://127.0.0.7:9/m"] * 2),
        (["gpu1", "gpu2"], "http://model", "http://[::1]:9/m", ["http://[::1]:9/m"] * 2),
        (["gpu1", "local"], "http://model", "http://metrics:9/m", ["http://metrics:9/m", None]),
    ],
)
def test_each_server_is_read_once_and_from_near_by(
    agents: list[str], endpoint: str | None, given: str | None, urls: list[str | None]
) -> None:
    assert metrics_urls(agents, endpoint, given) == dict(zip(agents, urls, strict=True))


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://model:8000/v1", 8000),
        ("http://model", 80),
        ("https://[::1]/v1", 443),
        ("ftp://model", None),
        ("http://model:nonsense", None),
        (None, None),
    ],
)
def test_the_port_of_the_server(url: str | None, port: int | None) -> None:
    assert server_port(url) == port
