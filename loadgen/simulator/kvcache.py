"""The KV blocks of one replica: how many are free, and which still hold the keys and values of a prompt's beginning.

    free  ->  used, by one sequence or, when they hold the same beginning of a prompt, by several
          <-  given back: what was computed stays findable until its block is needed; least recently used goes first

A block of a prompt is known by a key that stands for its words and all before them (`block_keys`); blocks of generated
tokens have none. Without keys this is a counter. No clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from loadgen.simulator.profiles import BLOCK_SIZE


def block_keys(words: Sequence[str]) -> tuple[int, ...]:
    """A key for each full block of the words."""
    keys: list[int] = []
    for end in range(BLOCK_SIZE, len(words) + 1, BLOCK_SIZE):
        keys.append(hash((keys[-1] if keys else 0, *words[end - BLOCK_SIZE : end])))
    return tuple(keys)


class BlockPool:
    """`free` counts those that nobody uses, with or without a key."""

    def __init__(self, blocks: int) -> None:
        self.blocks = self.free = blocks
        self._users: dict[int, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    def take(self, count: int) -> bool:
        """Blocks without a key, all or none."""
        if count > self.free:
            return False
        self.free -= count
        while len(self._unused) > self.free:
            self._unused.popitem(last=False)
        return True

    def take_prompt(self, count: int, keys: Sequence[int], reusable: int) -> tuple[int, list[int | None]] | None:
        """`count` blocks, all or none; of the first `reusable` keys those that are held already are shared.

        How many are shared, and for each key whether its block is now found by it: what `give_back` wants.
        """
        hits = 0
        while hits < min(reusable, len(keys)) and (keys[hits] in self._users or keys[hits] in self._unused):
            hits += 1
        if count - hits + sum(key in self._unused for key in keys[:hits]) > self.free:
            return None
        for key in keys[:hits]:
            if key in self._unused:
                del self._unused[key]
                self.free -= 1
            self._users[key] = self._users.get(key, 0) + 1
        self.take(count - hits)
        held: list[int | None] = list(keys[:hits])
        for key in keys[hits:]:
            known = key in self._users or key in self._unused
            held.append(None if known else key)
            if not known:
                self._users[key] = 1
        return hits, held

    def give_back(self, count: int, held: Sequence[int | None], computed: int) -> None:
        """All blocks of a sequence; of those with a key only the first `computed` stay findable."""
        self.free += count
        for index in reversed(range(len(held))):  # the end of a prompt is of use to fewer than its beginning
            key = held[index]
            if key is None:
                continue
            self._users[key] -= 1
            if self._users[key]:
                self.free -= 1
                continue
            del self._users[key]
            if index < computed:
                self._unused[key] = None
