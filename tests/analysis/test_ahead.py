"""Iterators that are read by threads of their own: the items, their order, and what a source raises."""

from collections.abc import Iterator

import pytest

from analysis.ahead import ahead, in_turn


def failing(*items: int) -> Iterator[int]:
    yield from items
    raise OSError("cut")


def test_the_items_are_those_of_the_source() -> None:
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter(()))) == []


def test_an_error_comes_after_the_items_before_it() -> None:
    items = ahead(failing(1, 2))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="cut"):
        next(items)


def test_two_sources_at_a_time_take_turns() -> None:
    sources = [iter("abc"), iter("1"), iter(""), iter("xy")]
    assert "".join(in_turn(sources)) == "a1bcxy"
