"""Continuous batching on one modelled GPU: `Replica`, an event model without clock or I/O.

    submit -> queue (first in, first out) -> prefill, over several iterations when long -> one token an iteration -> out

An iteration decodes one token for every running sequence and prefills waiting prompts with what is left of
MAX_BATCHED_TOKENS; it lasts prefill + decode time (profiles.Engine). All its tokens are due at its end. The next one
starts at that very instant, however late the caller is: lateness never slows the modelled GPU. A sequence is admitted
when a slot is free and blocks for its prompt *and all its output* are: conservative, so nothing is ever preempted.
Times are integers in ns of the caller's clock.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from loadgen.simulator.profiles import BLOCK_SIZE, MAX_BATCHED_TOKENS, Engine


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """One request in the model. `prompt_tokens + max_tokens` is at most the engine's `max_model_len`."""

    received_ns: int
    prompt_tokens: int
    max_tokens: int
    admitted_ns: int | None = None
    prefilled: int = 0
    generated: int = 0

    @property
    def blocks(self) -> int:
        return -(-(self.prompt_tokens + self.max_tokens) // BLOCK_SIZE)


S = TypeVar("S", bound=Sequence)


class Replica(Generic[S]):
    """One GPU with its queue. `due_ns` is the end of the running iteration, None when idle."""

    def __init__(self, engine: Engine, jitter: float = 0.0, seed: str = "") -> None:
        self.engine = engine
        self.due_ns: int | None = None
        self.queue: deque[S] = deque()
        self.free_blocks = engine.blocks
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.finished = 0
        self.cancelled = 0
        self._decoding: list[S] = []
        self._last_chunk: list[S] = []  # their prompt ends in the running iteration
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
            self._begin(sequence.received_ns)

    def cancel(self, sequence: S) -> None:
        """Forget an unfinished sequence: its slot and blocks serve the next iteration, this one lasts as begun."""
        self.cancelled += 1
        if sequence.admitted_ns is None:
            self.queue.remove(sequence)
            return
        self.free_blocks += sequence.blocks
        if sequence is self._chunked:
            self._chunked = None
        else:
            (self._last_chunk if sequence in self._last_chunk else self._decoding).remove(sequence)

    def step(self) -> list[S]:
        """End the iteration due at `due_ns` and begin the next; the sequences that got a token, `generated` told."""
        assert self.due_ns is not None
        self._past_compute_ns += self._compute_ns
        self._past_memory_ns += self._memory_ns
        served = self._decoding + self._last_chunk
        self._decoding = []
        self._last_chunk = []
        for sequence in served:
            sequence.generated += 1
            if sequence.generated < sequence.max_tokens:
                self._decoding.append(sequence)
            else:
                self.free_blocks += sequence.blocks
                self.finished += 1
        self.generated_tokens += len(served)
        self._begin(self.due_ns)
        return served

    def work_ns(self, now_ns: int) -> tuple[float, float]:
        """Time spent since the start, bound by compute and by memory bandwidth; the rest was idle."""
        compute, memory = self._past_compute_ns, self._past_memory_ns
        if self.due_ns is not None:
            share = min(1.0, max(0.0, (now_ns - self._began_ns) / (self.due_ns - self._began_ns)))
            compute += share * self._compute_ns
            memory += share * self._memory_ns
        return compute, memory

    def _begin(self, now_ns: int) -> None:
        if not self._decoding and self._chunked is None:
            if not self.queue:
                self.due_ns = None
                return
            now_ns = max(now_ns, self.queue[0].received_ns)
        prefill_tokens = self._prefill(now_ns)
        context_tokens = sum(sequence.prompt_tokens + sequence.generated for sequence in self._decoding)
        spread = self._random.lognormvariate(-(self._jitter**2) / 2, self._jitter) if self._jitter else 1.0
        self._compute_ns = spread * prefill_tokens * self.engine.prefill_ns_per_token
        self._memory_ns = spread * self.engine.decode_ns(context_tokens)
        self._began_ns = now_ns
        self.due_ns = now_ns + round(self._compute_ns + self._memory_ns)

    def _prefill(self, now_ns: int) -> int:
        """Give the iteration its prompts, at most one of them cut; the tokens of it."""
        budget = left = MAX_BATCHED_TOKENS - len(self._decoding)
        while left and (sequence := self._chunked or self._admit(now_ns)):
            taken = min(left, sequence.prompt_tokens - sequence.prefilled)
            left -= taken
            sequence.prefilled += taken
            if sequence.prefilled == sequence.prompt_tokens:
                self._last_chunk.append(sequence)
                self._chunked = None
            else:
                self._chunked = sequence
        self.prompt_tokens += budget - left
        return budget - left

    def _admit(self, now_ns: int) -> S | None:
        if not self.queue or self.running >= self.engine.slots:
            return None
        sequence = self.queue[0]
        if sequence.received_ns > now_ns or sequence.blocks > self.free_blocks:
            return None
        self.free_blocks -= sequence.blocks
        sequence.admitted_ns = now_ns
        return self.queue.popleft()
