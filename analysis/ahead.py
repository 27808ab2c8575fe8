"""Iterators that are read by threads of their own while their last items are worked on: most of reading is Arrow's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from queue import Queue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

_AT_ONCE = 2


def ahead(source: Iterator[T]) -> Iterator[T]:
    """The same items, read one ahead. Raises what `source` raises, where the item would be."""
    waiting: Queue[tuple[T] | BaseException | None] = Queue(1)

    def read() -> None:
        try:
            for item in source:
                waiting.put((item,))
            waiting.put(None)
        except BaseException as error:  # is raised where it is waited for
            waiting.put(error)

    Thread(target=read, daemon=True).start()
    while (got := waiting.get()) is not None:
        if isinstance(got, BaseException):
            raise got
        yield got[0]


def in_turn(sources: Iterable[Iterator[T]]) -> Iterator[T]:
    """The items, none of which is None, of all sources: of two sources at a time, one of each in turn."""
    left = iter(sources)
    some = deque(ahead(source) for source in islice(left, _AT_ONCE))
    while some:
        item = next(some[0], None)
        if item is None:
            some.popleft()
            some.extend(ahead(source) for source in islice(left, 1))
        else:
            some.rotate(-1)
            yield item
