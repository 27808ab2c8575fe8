"""The event model by a manual clock: known answers, order, limits, and the default target's calibration."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from loadgen.errors import UsageError
from loadgen.simulator.config import SimulatorConfig, validate
from loadgen.simulator.kvcache import block_keys
from loadgen.simulator.model import Replica, Sequence
from loadgen.simulator.profiles import BLOCK_SIZE, GPUS, Engine, engine

L4 = engine("L4", "8b", "bf16", 128)
WEIGHTS_B = 8_030_261_248 * 2
KV_B = 2 * 32 * 8 * 128 * 2  # a token: K and V, layers, heads, dimension, bytes
DECODE_NS = 1e9 * WEIGHTS_B / 300e9
PREFILL_NS = 1e9 * 2 * 8_030_261_248 / 121e12  # a token


def sequence(received_ns: int = 0, prompt: int = 32, output: int = 32) -> Sequence:
    return Sequence(received_ns=received_ns, prompt_tokens=prompt, max_tokens=output)


def drain(replica: Replica[Sequence]) -> list[tuple[int, list[Sequence]]]:
    """End of each iteration, and who got a token in it."""
    steps = []
    while (due_ns := replica.due_ns) is not None:
        steps.append((due_ns, replica.step()))
    return steps


def finish_ns(steps: list[tuple[int, list[Sequence]]]) -> dict[Sequence, int]:
    return {served: due_ns for due_ns, all_served in steps for served in all_served}


def closed_loop(users: int, replicas: int, seconds: int, warmup: int) -> tuple[float, float, float]:
    """QPS, mean residence in s and median TTFT in s of users that ask again 0.1 ms after their answer."""
    machines: list[Replica[Sequence]] = [Replica(L4, 0.02, f"0/{index}") for index in range(replicas)]
    arrivals = [round(5e9 * user / users) for user in range(users)]
    first_ns: dict[Sequence, int] = {}
    done: list[tuple[int, int]] = []
    now_ns = 0
    while now_ns < seconds * 1e9:
        due = min((m for m in machines if m.due_ns is not None), key=lambda m: m.due_ns or 0, default=None)
        if due is None or due.due_ns is None or (arrivals and arrivals[0] <= due.due_ns):
            now_ns = heapq.heappop(arrivals)
            min(machines, key=lambda m: m.outstanding).submit(sequence(now_ns))
            continue
        now_ns = due.due_ns
        for served in due.step():
            first_ns.setdefault(served, now_ns - served.received_ns)
            if served.generated == served.max_tokens:
                heapq.heappush(arrivals, now_ns + 100_000)
                ttft_ns = first_ns.pop(served)
                if now_ns > warmup * 1e9:
                    done.append((now_ns - served.received_ns, ttft_ns))
    ttfts = sorted(ttft_ns for _, ttft_ns in done)
    return len(done) / (seconds - warmup), sum(r for r, _ in done) / len(done) / 1e9, ttfts[len(ttfts) // 2] / 1e9


def test_iteration_times_are_the_arithmetic() -> None:
    replica: Replica[Sequence] = Replica(L4)
    replica.submit(sequence(1_000, prompt=32, output=3))
    (first, _), (second, _), (third, _) = drain(replica)
    assert first - 1_000 == round(32 * PREFILL_NS + DECODE_NS) == 57_782_486
    assert second - first == round(DECODE_NS + 1e9 * KV_B * 33 / 300e9)
    assert third - second == round(DECODE_NS + 1e9 * KV_B * 34 / 300e9)


@pytest.mark.parametrize(
    ("users", "qps", "residence_s", "ttft_s"),
    [
        (100, 54.6, 1.83, 0.113),
        (500, 241, 2.07, 0.127),
        (1000, 421, 2.38, 0.143),
        (2500, 438, 5.71, 3.4),
        (5000, 438, 11.4, 9.3),
    ],
)
def test_default_target(users: int, qps: float, residence_s: float, ttft_s: float) -> None:
    measured = closed_loop(users, replicas=8, seconds=75, warmup=25)
    assert measured == pytest.approx((qps, residence_s, ttft_s), rel=0.02)


def test_saturated_throughput_is_the_arithmetic() -> None:
    # 128 run; each iteration 4 end and 4 are prefilled, 124 decode with 32 + 16.5 tokens of context on average.
    iteration_ns = 4 * 32 * PREFILL_NS + DECODE_NS + 1e9 * KV_B * 124 * 48.5 / 300e9
    assert closed_loop(300, replicas=1, seconds=60, warmup=20)[0] == pytest.approx(4e9 / iteration_ns, rel=0.02)


def test_first_in_first_out_through_one_slot() -> None:
    replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 1))
    asked = [sequence(0, output=3), sequence(1, output=1), sequence(2, output=2)]
    for one in asked:
        replica.submit(one)
    steps = drain(replica)
    assert [served for _, [served] in steps] == [asked[0]] * 3 + [asked[1]] + [asked[2]] * 2
    assert [one.admitted_ns for one in asked] == [0, steps[2][0], steps[3][0]]


def test_blocks_limit_admission_and_nobody_overtakes() -> None:
    replica: Replica[Sequence] = Replica(L4)
    third = L4.blocks // 3 * BLOCK_SIZE
    large = [sequence(0, third - 50, 50) for _ in range(4)]
    small = sequence(0, 1, 1)
    for one in (*large, small):
        replica.submit(one)
    steps = drain(replica)
    ends = finish_ns(steps)
    assert large[3].admitted_ns is not None and large[3].admitted_ns >= ends[large[0]]
    assert small.admitted_ns is not None and small.admitted_ns >= large[3].admitted_ns
    assert replica.pool.free == L4.blocks


def test_slots_are_never_exceeded() -> None:
    replica: Replica[Sequence] = Replica(L4)
    for _ in range(300):
        replica.submit(sequence(0, 8, 4))
    while replica.due_ns is not None:
        assert replica.running <= 128
        assert len(replica.step()) <= 128
    assert (replica.finished, replica.generated_tokens, replica.prompt_tokens) == (300, 1200, 2400)


def test_a_long_prompt_is_cut_and_others_decode_meanwhile() -> None:
    replica: Replica[Sequence] = Replica(L4)
    short, long = sequence(0, 8, 10), sequence(1, 5000, 1)
    replica.submit(short)
    replica.submit(long)
    steps = drain(replica)
    # 2047 tokens beside the one that decodes: 2047 + 2047 + 906
    assert [long in served for _, served in steps] == [False, False, False, True] + [False] * 6
    gaps = [after - before for (before, _), (after, _) in pairwise(steps)]
    assert gaps[0] == pytest.approx(2047 * PREFILL_NS + DECODE_NS, rel=0.001)
    assert gaps[2] == pytest.approx(906 * PREFILL_NS + DECODE_NS, rel=0.001)


def test_a_late_caller_does_not_slow_the_gpu_nor_let_anybody_in_early() -> None:
    replica: Replica[Sequence] = Replica(L4)
    first = sequence(0, output=2)
    replica.submit(first)
    boundary_ns = replica.due_ns
    assert boundary_ns is not None
    late = sequence(boundary_ns + 1)  # came after the boundary, before the late caller's step
    replica.submit(late)
    replica.step()
    assert late.admitted_ns is None
    second_ns = replica.due_ns
    assert second_ns == boundary_ns + round(DECODE_NS + 1e9 * KV_B * 33 / 300e9)
    replica.step()
    assert late.admitted_ns == second_ns


def test_an_idle_gpu_starts_when_the_late_request_came() -> None:
    replica: Replica[Sequence] = Replica(L4)
    replica.submit(sequence(0, output=1))
    assert replica.due_ns is not None
    late = sequence(replica.due_ns + 5)
    replica.submit(late)
    replica.step()
    assert late.admitted_ns == late.received_ns


def test_cancel_gives_everything_back_in_every_state() -> None:
    replica: Replica[Sequence] = Replica(L4)
    decoding, ending, cut, queued = (sequence(0, 8, 9), sequence(1, 8, 9), sequence(1, 4000, 9), sequence(1, 8, 9))
    for one in (decoding, ending, cut, queued):
        replica.submit(one)
    replica.step()
    assert (decoding.generated, ending.prefilled, 0 < cut.prefilled < 4000, queued.admitted_ns) == (1, 8, True, None)
    for left, one in zip((3, 2, 1, 0), (queued, cut, ending, decoding), strict=True):
        replica.cancel(one)
        assert replica.outstanding == left
    assert replica.pool.free == L4.blocks
    assert [served for _, served in drain(replica)] == [[]]
    assert replica.cancelled == 4


def test_jitter_is_seeded_small_and_without_bias() -> None:
    def durations(seed: str) -> list[int]:
        replica: Replica[Sequence] = Replica(L4, 0.02, seed)
        replica.submit(sequence(0, 1, 2000))
        return [after - before for (before, _), (after, _) in pairwise(drain(replica))]

    assert durations("a") == durations("a") != durations("b")
    assert sum(durations("a")) / 1999 == pytest.approx(DECODE_NS + 1e9 * KV_B * 1000 / 300e9, rel=0.002)


def test_work_is_the_time_of_iterations() -> None:
    replica: Replica[Sequence] = Replica(L4)
    replica.submit(sequence(1_000_000, 100, 2))
    first_ns = replica.due_ns
    assert first_ns is not None
    half = replica.work_ns((1_000_000 + first_ns) // 2)
    assert half == pytest.approx((50 * PREFILL_NS, DECODE_NS / 2), rel=1e-6)
    end_ns = drain(replica)[-1][0]
    assert sum(replica.work_ns(end_ns + 10**9)) == pytest.approx(end_ns - 1_000_000, abs=2)


def test_memory_left_for_the_cache() -> None:
    assert L4.weights_b == WEIGHTS_B
    assert L4.blocks == (int(23_034 * 2**20 * 0.9) - WEIGHTS_B - 2**30) // (16 * KV_B) == 2195
    assert L4.max_model_len == 2195 * 16
    assert engine("H200", "8b", "bf16", 128).max_model_len == 131_072


def test_fp8_runs_at_the_bf16_rate_where_the_gpu_has_none() -> None:
    ampere, ada = engine("A100-80G", "8b", "fp8", 1), engine("L4", "8b", "fp8", 1)
    assert ampere.prefill_ns_per_token == 2e9 * 8_030_261_248 / GPUS["A100-80G"].bf16_flops
    assert ada.prefill_ns_per_token == pytest.approx(PREFILL_NS / 2)
    assert ampere.weights_b == WEIGHTS_B / 2


def test_a_model_too_large_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"^model 70b in bf16 does not fit one simulated H200: .* or fp8$"):
        engine("H200", "70b", "bf16", 128)
    assert engine("H200", "70b", "fp8", 128).blocks > 0


def test_every_problem_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        validate(SimulatorConfig(port=-1, replicas=0, gpu="B200", model="9b", dtype="int4", slots=0, jitter=9))
    assert len(str(caught.value).splitlines()) == 7


# Blocks run out


def small(blocks: int, **options: Any) -> Engine:
    """An L4 with memory for so many blocks."""
    made = engine("L4", "8b", "bf16", 128, **options)
    vram_b = math.ceil((made.weights_b + 2**30 + blocks * made.block_b) / 0.9) + 1
    made = replace(made, gpu=replace(made.gpu, vram_b=vram_b))
    assert made.blocks == blocks
    return made


def test_the_last_admitted_gives_way_and_is_prefilled_again() -> None:
    replica: Replica[Sequence] = Replica(small(4))
    first, older, younger, waiting = sequence(0, 1, 1), sequence(0, 32, 20), sequence(0, 32, 20), sequence(1, 1, 1)
    for one in (first, older, younger, waiting):
        replica.submit(one)
    steps = drain(replica)
    # Both need a third block for their first token: the older takes one of the younger's, and nobody overtakes that.
    assert [len(served) for _, served in steps] == [1, 2] + [1] * 19 + [2] + [1] * 18
    assert steps[20][1] == [older] and set(steps[21][1]) == {younger, waiting}
    assert [one.preemptions for one in (older, younger, waiting)] == [0, 1, 0]
    assert (younger.admitted_ns, younger.generated) == (steps[0][0], 20)
    assert (replica.preemptions, replica.prompt_tokens, replica.generated_tokens) == (1, 66, 42)
    # 32 + 1 tokens again, and the prompt of the one that waited
    assert steps[21][0] - steps[20][0] == round((33 + 1) * PREFILL_NS + DECODE_NS)
    assert replica.pool.free == 4


def test_who_needs_a_block_and_is_the_last_gives_way_itself() -> None:
    replica: Replica[Sequence] = Replica(small(4))
    first, older, younger = sequence(0, 1, 1), sequence(0, 20, 12), sequence(0, 32, 5)
    for one in (first, older, younger):
        replica.submit(one)
    steps = drain(replica)
    assert [set(served) for _, served in steps[1:14]] == [{older, younger}] + [{older}] * 11 + [{younger}]
    assert (older.preemptions, younger.preemptions) == (0, 1)


def test_a_prompt_in_the_middle_of_its_prefill_gives_way_too() -> None:
    replica: Replica[Sequence] = Replica(small(300, max_batched_tokens=256))
    older, long, waiting = sequence(0, 15, 40), sequence(1, 298 * 16, 2), sequence(2, 1, 1)
    for one in (older, long, waiting):
        replica.submit(one)
    while older.generated < 17:
        replica.step()
    assert (replica.pool.free, long.preemptions, long.prefilled) == (0, 0, 17 * 255)
    replica.step()  # a third block for the older
    assert (long.preemptions, long.queued, replica.queue[0], waiting.admitted_ns) == (1, True, long, None)
    drain(replica)
    assert (older.preemptions, long.generated, waiting.generated, replica.pool.free) == (0, 2, 1, 300)


def test_cancel_of_a_preempted_one() -> None:
    replica: Replica[Sequence] = Replica(small(4))
    first, older, younger = sequence(0, 1, 1), sequence(0, 32, 20), sequence(0, 32, 20)
    for one in (first, older, younger):
        replica.submit(one)
    replica.step()
    replica.step()
    assert younger.queued and younger.generated == 1
    replica.cancel(younger)
    drain(replica)
    assert (older.generated, younger.generated, replica.pool.free, replica.cancelled) == (20, 1, 4, 1)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_whatever_comes_all_is_served_and_no_block_is_lost(prefix_cache: bool) -> None:
    source = random.Random(7)
    replica: Replica[Sequence] = Replica(small(60, prefix_cache=prefix_cache, max_batched_tokens=300))
    live: list[Sequence] = []
    counts: dict[Sequence, int] = {}
    now_ns = 0
    for _ in range(1500):
        now_ns = max(now_ns, replica.due_ns or 0)
        if source.random() < 0.3:
            words = ["shared"] * source.randrange(200) + [str(source.random())] * source.randrange(1, 200)
            keys = block_keys(words) if prefix_cache else ()
            item = source.random() < 0.2
            fresh = Sequence(
                received_ns=now_ns,
                prompt_tokens=0 if item else len(words),
                max_tokens=1 if item else source.randrange(1, 200),
                item=item,
                keys=() if item else keys,
            )
            replica.submit(fresh)
            live.append(fresh)
        if live and source.random() < 0.02:
            replica.cancel(live.pop(source.randrange(len(live))))
        for served in replica.step() if replica.due_ns is not None else []:
            counts[served] = counts.get(served, 0) + 1
            assert served.generated == counts[served] <= served.max_tokens
            if served.generated == served.max_tokens:
                live.remove(served)
        running = [one for one in live if not one.queued]
        assert len(running) == replica.running and len(live) == replica.outstanding
        held = sum(one.blocks for one in running)
        assert 60 - replica.pool.free <= held if prefix_cache else 60 - replica.pool.free == held
        for one in running:
            assert one.blocks * BLOCK_SIZE >= one.prompt_tokens + one.generated - (one.generated == one.max_tokens)
    assert replica.preemptions > 20
    drain(replica)
    assert all(one.generated == one.max_tokens for one in live)
    assert replica.pool.free == 60 and replica.outstanding == 0


# Options of the engine


def test_a_cached_beginning_is_not_prefilled_again() -> None:
    words = [f"w{index}" for index in range(64)]
    replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 128, prefix_cache=True))

    def first_token_ns(asked: list[str]) -> tuple[int, int]:
        one = Sequence(received_ns=0, prompt_tokens=len(asked), max_tokens=1, keys=block_keys(asked))
        replica.submit(one)
        due_ns = replica.due_ns
        replica.step()
        return (due_ns or 0) - (one.admitted_ns or 0), one.cached_tokens

    assert first_token_ns(words) == (round(64 * PREFILL_NS + DECODE_NS), 0)
    assert first_token_ns(words) == (round(16 * PREFILL_NS + DECODE_NS), 48)  # the last token is always computed
    assert first_token_ns([*words, "x"]) == (round(1 * PREFILL_NS + DECODE_NS), 64)
    assert first_token_ns([*words[:20], *words]) == (round(68 * PREFILL_NS + DECODE_NS), 16)
    assert first_token_ns(words[1:]) == (round(63 * PREFILL_NS + DECODE_NS), 0)
    assert (replica.prefix_queries, replica.prefix_hits) == (64 + 64 + 65 + 84 + 63, 48 + 64 + 16)
    assert replica.prompt_tokens == replica.prefix_queries
    assert replica.pool.free == L4.blocks


def test_the_budget_of_an_iteration_is_an_option() -> None:
    replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 128, max_batched_tokens=512))
    replica.submit(sequence(0, 1200, 1))
    begins = [0, *(due_ns for due_ns, _ in drain(replica))]
    gaps = [after - before for before, after in pairwise(begins)]
    assert gaps == [round(tokens * PREFILL_NS + DECODE_NS) for tokens in (512, 512, 176)]


def test_items_that_are_queued_when_the_gpu_is_free_are_one_batch() -> None:
    replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 4))
    items = [Sequence(received_ns=n, prompt_tokens=0, max_tokens=1, item=True) for n in range(7)]
    for one in items:
        replica.submit(one)
    steps = drain(replica)
    assert [served for _, served in steps] == [items[:1], items[1:5], items[5:]]
    begins = [0, *(due_ns for due_ns, _ in steps)]
    gaps = [after - before for before, after in pairwise(begins)]
    assert gaps == [round(count * 32 * PREFILL_NS + DECODE_NS) for count in (1, 4, 2)]
    assert (replica.predicted, replica.generated_tokens, replica.prompt_tokens, replica.finished) == (7, 0, 0, 7)


def test_a_chat_without_words_is_no_item() -> None:
    replica: Replica[Sequence] = Replica(L4)
    replica.submit(sequence(0, 0, 3))
    drain(replica)
    assert (replica.predicted, replica.generated_tokens) == (0, 3)


def test_a_power_limit_slows_by_the_cube_root() -> None:
    limited = engine("L4", "8b", "bf16", 128, power_limit_w=16 + 56 / 8)
    assert limited.clocks == pytest.approx((0.5, (1 / 8 / 0.7) ** (1 / 3)))
    assert limited.prefill_ns_per_token == pytest.approx(2 * PREFILL_NS)
    assert limited.decode_ns(0) == pytest.approx(DECODE_NS / limited.clocks[1])
    assert L4.clocks == (1, 1)


def test_speedup_divides_every_time() -> None:
    def ends(speedup: float) -> list[int]:
        replica: Replica[Sequence] = Replica(engine("L4", "8b", "bf16", 128, speedup=speedup), 0.02, "a")
        replica.submit(sequence(0, 100, 50))
        return [due_ns for due_ns, _ in drain(replica)]

    assert [20 * due_ns for due_ns in ends(20)] == pytest.approx(ends(1), rel=1e-6)
