"""Continuous batching on one modelled GPU: `Replica`, an event model without clock or I/O.

    submit -> queue (first in, first out) -> prefill, over several iterations when long -> one token an iteration -> out
                ^------------------------ preempted: no KV block is left for the next token ------'

An iteration decodes one token for every running sequence and prefills waiting prompts with what is left of the engine's
`max_batched_tokens`; it lasts prefill + decode time (profiles.Engine). All its tokens are due at its end. The next one
starts at that very instant, however late the caller is: lateness never slows the modelled GPU. A sequence is admitted
when a slot and blocks for its prompt are free, and takes another block whenever its context has filled the last. Times
are integers in ns of the caller's clock.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Generic, TypeVar

from loadgen.simulator.kvcache import BlockPool
from loadgen.simulator.profiles import BLOCK_SIZE, Engine


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One request in the model. `prompt_tokens + max_tokens` is at most the engine's `max_model_len`.

    An `item` of /predict has no prompt and one token: a single forward pass that needs no block.
    """

    received_ns: int  # when it joined the queue
    prompt_tokens: int
    max_tokens: int
    item: bool = False
    keys: tuple[int, ...] = ()  # of the prompt's full blocks, for the prefix cache
    admitted_ns: int | None = None  # for the first time
    queued: bool = True
    prefilled: int = 0
    generated: int = 0
    cached_tokens: int = 0  # that the prefix cache had at the first admission
    preemptions: int = 0
    blocks: int = 0
    held_keys: Items[int | None] = ()
    until: int = 0  # so many tokens and it has to be looked at: it ends, or its blocks are full


S = TypeVar("S", bound=Sequence)


class Replica(Generic[S]):
    """One GPU with its queue. `due_ns` is the end of the running iteration, None when idle."""

    def __init__(self, engine: Engine, jitter: float = 0.0, seed: str = "") -> None:
        self.engine = engine
        self.due_ns: int | None = None
        self.queue: deque[S] = deque()
        self.pool = BlockPool(engine.blocks)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished = 0
        self.predicted = 0
        self.cancelled = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._decoding: list[S] = []  # in the order of their admission
        self._context = 0  # tokens of theirs
        self._last_chunk: list[S] = []  # their prompt ends in the running iteration
        self._items = 0  # how many of those are items
        self._chunked: S | None = None  # its prompt goes on in the next one
        self._jitter = jitter
        self._random = random.Random(seed)
        self._began_ns = 0
        self._compute_ns = self._memory_ns = 0.0  # of the running iteration
        self._past_compute_ns = self._past_memory_ns = 0.0

    @property
    def running(self) -> int:
        return len(self._decoding) + len(self._last_chunk) + (self._chunked is not None)

    @property
    def outstanding(self) -> int:
        return len(self.queue) + self.running

    def submit(self, sequence: S) -> None:
        """Queue it; an idle replica starts at `received_ns`. Calls come in the order of `received_ns`."""
        self.queue.append(sequence)
        if self.due_ns is None:
            self._begin(sequence.received_ns, [])

    def cancel(self, sequence: S) -> None:
        """Forget an unfinished sequence: its slot and blocks serve the next iteration, this one lasts as begun."""
        self.cancelled += 1
        if sequence.queued:
            self.queue.remove(sequence)
            return
        self._free(sequence)
        if sequence is self._chunked:
            self._chunked = None
        elif sequence in self._last_chunk:
            self._last_chunk.remove(sequence)
            self._items -= sequence.item
        else:
            self._leave_decoding(sequence)

    def step(self) -> list[S]:
        """End the iteration due at `due_ns` and begin the next; the sequences that got a token, `generated` told."""
        assert self.due_ns is not None
        self._past_compute_ns += self._compute_ns
        self._past_memory_ns += self._memory_ns
        served = self._decoding + self._last_chunk
        self._context += len(self._decoding)
        for sequence in self._last_chunk:
            self._context += sequence.prompt_tokens + sequence.generated + 1
        self._decoding = decoding = []
        self._last_chunk = []
        full: list[S] = []
        for sequence in served:
            sequence.generated = generated = sequence.generated + 1
            if generated < sequence.until:
                decoding.append(sequence)
            elif generated < sequence.max_tokens:
                decoding.append(sequence)
                full.append(sequence)
            else:
                self._context -= sequence.prompt_tokens + generated
                self._free(sequence)
                self.finished += 1
        self.generated_tokens += len(served) - self._items
        self.predicted += self._items
        self._begin(self.due_ns, full)
        return served

    def work_ns(self, now_ns: int) -> tuple[float, float]:
        """Time spent since the start, bound by compute and by memory bandwidth; the rest was idle."""
        compute, memory = self._past_compute_ns, self._past_memory_ns
        if self.due_ns is not None:
            share = min(1.0, max(0.0, (now_ns - self._began_ns) / (self.due_ns - self._began_ns)))
            compute += share * self._compute_ns
            memory += share * self._memory_ns
        return compute, memory

    def _begin(self, now_ns: int, full: list[S]) -> None:
        """`full` have filled their last block, in the order of their admission."""
        if not self._decoding and self._chunked is None:
            if not self.queue:
                self.due_ns = None
                return
            now_ns = max(now_ns, self.queue[0].received_ns)
        preempted = self.preemptions
        for sequence in full:
            self._grow(sequence)
        prefill_tokens = self._prefill(now_ns, may_admit=self.preemptions == preempted)
        spread = self._random.lognormvariate(-(self._jitter**2) / 2, self._jitter) if self._jitter else 1.0
        compute_tokens = prefill_tokens + self._items * self.engine.predict_tokens
        self._compute_ns = spread * compute_tokens * self.engine.prefill_ns_per_token
        self._memory_ns = spread * self.engine.decode_ns(self._context)
        self._began_ns = now_ns
        self.due_ns = now_ns + round(self._compute_ns + self._memory_ns)

    def _prefill(self, now_ns: int, may_admit: bool) -> int:
        """Give the iteration its prompts, at most one of them cut; the tokens of it."""
        self._items = 0
        budget = left = self.engine.max_batched_tokens - len(self._decoding)
        while left and (sequence := self._chunked or (self._admit(now_ns) if may_admit else None)):
            context = sequence.prompt_tokens + sequence.generated
            taken = min(left, context - sequence.prefilled)
            left -= taken
            sequence.prefilled += taken
            if sequence.prefilled < context:
                self._chunked = sequence
                continue
            self._last_chunk.append(sequence)
            self._chunked = None
            self._items += sequence.item
            if not sequence.generated:
                self.prompt_tokens += sequence.prompt_tokens
        return budget - left

    def _admit(self, now_ns: int) -> S | None:
        if not self.queue or self.running >= self.engine.slots:
            return None
        sequence = self.queue[0]
        if sequence.received_ns > now_ns:
            return None
        context = sequence.prompt_tokens + sequence.generated
        blocks = -(-context // BLOCK_SIZE)
        # The last token is computed in any case: it yields the next one.
        taken = self.pool.take_prompt(blocks, sequence.keys, (context - 1) // BLOCK_SIZE)
        if taken is None:
            return None
        hits, sequence.held_keys = taken
        sequence.blocks = blocks
        sequence.until = min(sequence.max_tokens, blocks * BLOCK_SIZE - sequence.prompt_tokens + 1)
        sequence.prefilled = hits * BLOCK_SIZE
        sequence.queued = False
        if sequence.admitted_ns is None:
            sequence.admitted_ns = now_ns
            if self.engine.prefix_cache:
                sequence.cached_tokens = sequence.prefilled
                self.prefix_queries += sequence.prompt_tokens
                self.prefix_hits += sequence.prefilled
        return self.queue.popleft()

    def _grow(self, sequence: S) -> None:
        """Give it another block, at the cost of those admitted last; it may be the last itself."""
        while not sequence.queued and not self.pool.take(1):
            self._preempt(self._chunked or self._decoding[-1])
        if not sequence.queued:
            sequence.blocks += 1
            sequence.until = min(sequence.max_tokens, sequence.until + BLOCK_SIZE)

    def _preempt(self, sequence: S) -> None:
        """Back to the front of the queue; its prompt and what it has generated will be prefilled again."""
        self._free(sequence)
        if sequence is self._chunked:
            self._chunked = None
        else:
            self._leave_decoding(sequence)
        sequence.queued = True
        sequence.preemptions += 1
        self.preemptions += 1
        self.queue.appendleft(sequence)

    def _leave_decoding(self, sequence: S) -> None:
        self._decoding.remove(sequence)
        self._context -= sequence.prompt_tokens + sequence.generated

    def _free(self, sequence: S) -> None:
        self.pool.give_back(sequence.blocks, sequence.held_keys, sequence.prefilled // BLOCK_SIZE)
