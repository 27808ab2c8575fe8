"""The block pool by known answers: counting, sharing, what stays findable, and what goes first."""

from __future__ import annotations

from loadgen.simulator.kvcache import BlockPool, block_keys


def test_a_key_stands_for_its_words_and_all_before_them() -> None:
    words = [f"w{index}" for index in range(47)]
    keys = block_keys(words)
    assert len(keys) == 2
    assert block_keys([*words, "more"])[:2] == keys and len(block_keys([*words, "more"])) == 3
    assert block_keys([*words[:16], "x", *words[17:]])[0] == keys[0]
    assert not set(block_keys(["x", *words[1:]])) & set(keys)
    assert block_keys(words[:15]) == ()


def test_without_keys_it_counts() -> None:
    pool = BlockPool(5)
    assert pool.take_prompt(3, (), 2) == (0, [])
    assert not pool.take(3) and pool.free == 2
    assert pool.take(2) and pool.free == 0
    assert pool.take_prompt(1, (), 0) is None
    pool.give_back(5, [], 3)
    assert pool.free == 5


def test_a_beginning_is_shared_and_stays_findable() -> None:
    pool = BlockPool(10)
    assert pool.take_prompt(4, (1, 2, 3), 3) == (0, [1, 2, 3])
    assert pool.take_prompt(4, (1, 2, 9), 3) == (2, [1, 2, 9])
    assert pool.free == 10 - 4 - 2
    pool.give_back(4, [1, 2, 3], 3)
    assert pool.free == 10 - 4  # two of its blocks have another user
    pool.give_back(4, [1, 2, 9], 3)
    assert pool.free == 10
    assert pool.take_prompt(3, (1, 2, 3), 3) == (3, [1, 2, 3])
    assert pool.free == 7


def test_what_must_be_computed_again_is_no_hit_and_no_second_key() -> None:
    pool = BlockPool(10)
    pool.take_prompt(2, (1, 2), 1)
    assert pool.take_prompt(2, (1, 2), 1) == (1, [1, None])
    assert pool.free == 10 - 3
    pool.give_back(2, [1, None], 2)
    assert pool.free == 10 - 2


def test_the_least_recently_used_and_the_end_of_a_prompt_go_first() -> None:
    pool = BlockPool(6)
    for keys in ((1, 2, 3), (4, 5, 6)):
        pool.take_prompt(3, keys, 3)
        pool.give_back(3, keys, 3)
    assert pool.take(2)  # those of keys 3 and 2
    assert pool.take_prompt(3, (1, 2, 3), 3) == (1, [1, 2, 3])  # two new blocks: those of 6 and 5
    pool.give_back(2, [], 0)
    assert pool.take_prompt(3, (4, 5, 6), 3) == (1, [4, 5, 6])
    assert pool.free == 0


def test_too_few_blocks_take_none() -> None:
    pool = BlockPool(4)
    pool.take_prompt(2, (1, 2), 2)
    pool.give_back(2, [1, 2], 2)
    pool.take(2)
    assert pool.take_prompt(3, (1, 2), 2) is None  # its two found ones are the only free ones
    assert pool.free == 2
    assert pool.take_prompt(2, (1, 2), 2) == (2, [1, 2])


def test_what_was_not_computed_is_not_found() -> None:
    pool = BlockPool(4)
    pool.take_prompt(3, (1, 2, 3), 3)
    pool.give_back(3, [1, 2, 3], 1)
    assert pool.take_prompt(3, (1, 2, 3), 3) == (1, [1, 2, 3])
