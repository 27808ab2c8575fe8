from __future__ import annotations

from remote_agents.hosts import check_agents


def test_known_names() -> None:
    assert check_agents(["local"]) == check_agents(["none"]) == check_agents([]) == []


def test_each_problem_is_one_sentence() -> None:
    assert check_agents(["gpu-1", "local"]) == [
        "agent 'gpu-1' is not known: agents on other hosts come with a later version, only 'local' and 'none' are known"
    ]
    assert check_agents(["none", "local"]) == [
        "agent 'none' cannot be combined with others: give it alone, or leave it out"
    ]
