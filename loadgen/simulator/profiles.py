"""GPUs and models by their published figures, and `Engine`: what a model on a GPU can hold and how long its work takes.

Data sheets give bandwidth, dense FLOPS, power and clocks; memory is what nvidia-smi shows on such a card. Model shapes
are those of Llama 3.1. Pure arithmetic: no clock, no I/O. Bytes, bytes/s, FLOP/s, nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from loadgen.errors import UsageError

BLOCK_SIZE = 16  # tokens a KV block, as in vLLM
GPU_MEMORY_UTILISATION = 0.9  # share of the card that the server takes, as in vLLM
OVERHEAD_B = 1 << 30  # activations, CUDA graphs and context: an assumption
MAX_BATCHED_TOKENS = 2048  # decoded and prefilled tokens of one iteration, as in vLLM
PREDICT_TOKENS = 32  # an item of /predict computes as much as prefilling this many: an assumption
MEMORY_POWER = 0.7  # power while waiting for memory, as a share of what computing draws above idle: an assumption
# The temperature of an idle GPU, and by how much computing heats it: assumptions
IDLE_C = 30.0
HEATS_C = 40.0

_MIB = 1 << 20
_KV_VALUE_B = 2  # the KV cache stays in 16 bits whatever the weights are, as in vLLM
DTYPES = {"bf16": 2, "fp8": 1}  # bytes a weight


@dataclass(frozen=True)
class Gpu:
    name: str
    vram_b: int
    bandwidth: float
    bf16_flops: float
    fp8_flops: float | None  # None: computed at the bf16 rate
    idle_w: float
    max_w: float
    idle_sm_mhz: int
    max_sm_mhz: int
    mem_mhz: int

    def temp_c(self, power_w: float) -> float:
        return IDLE_C + HEATS_C * (power_w - self.idle_w) / (self.max_w - self.idle_w)


@dataclass(frozen=True)
class Model:
    name: str
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    context: int

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * _KV_VALUE_B


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H200", 143_771 * _MIB, 4.8e12, 989e12, 1979e12, 75, 700, 345, 1980, 3201),
        Gpu("H100", 81_559 * _MIB, 3.35e12, 989e12, 1979e12, 70, 700, 345, 1980, 2619),
        Gpu("A100-80G", 81_920 * _MIB, 2.039e12, 312e12, None, 60, 400, 210, 1410, 1593),
        Gpu("L4", 23_034 * _MIB, 300e9, 121e12, 242e12, 16, 72, 210, 2040, 6251),
    )
}
MODELS = {
    "8b": Model("sim-8b", 8_030_261_248, 32, 8, 128, 131_072),
    "70b": Model("sim-70b", 70_553_706_496, 80, 8, 128, 131_072),
}


@dataclass(frozen=True)
class Engine:
    """A model in a data type on one GPU, with `slots` sequences at most. `speedup` divides every time.

    Below its own power limit a GPU lowers its clock: power above idle goes with the cube of the clock, and time with
    its inverse, both while computing and while reading memory. A limit of its temperature is one of its power: the
    temperature goes with the power.
    """

    gpu: Gpu
    model: Model
    dtype: str
    slots: int
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    prefix_cache: bool = False
    predict_tokens: int = PREDICT_TOKENS
    power_limit_w: float | None = None  # None: the GPU's own
    speedup: float = 1.0
    temp_limit_c: float | None = None  # None: none

    @cached_property
    def weights_b(self) -> int:
        return self.model.parameters * DTYPES[self.dtype]

    @cached_property
    def block_b(self) -> int:
        return BLOCK_SIZE * self.model.kv_bytes_per_token

    @cached_property
    def blocks(self) -> int:
        """KV blocks in what weights and overhead leave; below 1 when the model does not fit."""
        return (int(self.gpu.vram_b * GPU_MEMORY_UTILISATION) - self.weights_b - OVERHEAD_B) // self.block_b

    @cached_property
    def max_model_len(self) -> int:
        return min(self.model.context, self.blocks * BLOCK_SIZE)

    @cached_property
    def vram_used_b(self) -> int:
        """Flat from the start: weights and pool are taken before the first request."""
        return self.weights_b + self.blocks * self.block_b + OVERHEAD_B

    @cached_property
    def limit_w(self) -> float:
        return self.gpu.max_w if self.power_limit_w is None else self.power_limit_w

    @cached_property
    def is_hot(self) -> bool:
        """Whether it is the temperature that the clock is lowered for."""
        return self._coolest_w < self.limit_w

    @cached_property
    def _coolest_w(self) -> float:
        """What it may draw without getting too warm."""
        if self.temp_limit_c is None:
            return self.gpu.max_w
        return self.gpu.idle_w + (self.temp_limit_c - IDLE_C) / HEATS_C * (self.gpu.max_w - self.gpu.idle_w)

    @cached_property
    def dynamic_w(self) -> tuple[float, float]:
        """Power above idle while computing, and while reading memory."""
        above_idle_w = self.gpu.max_w - self.gpu.idle_w
        limit_w = min(self.limit_w, self._coolest_w) - self.gpu.idle_w
        return min(above_idle_w, limit_w), min(MEMORY_POWER * above_idle_w, limit_w)

    @cached_property
    def clocks(self) -> tuple[float, float]:
        """Share of the highest clock while computing, and while reading memory."""
        above_idle_w = self.gpu.max_w - self.gpu.idle_w
        compute_w, memory_w = self.dynamic_w
        return (compute_w / above_idle_w) ** (1 / 3), (memory_w / (MEMORY_POWER * above_idle_w)) ** (1 / 3)

    @cached_property
    def prefill_ns_per_token(self) -> float:
        """2 x parameters FLOP a token at the dense peak; attention is left out."""
        fp8 = self.dtype == "fp8" and self.gpu.fp8_flops
        return 2e9 * self.model.parameters / ((fp8 or self.gpu.bf16_flops) * self.speedup * self.clocks[0])

    @cached_property
    def _read_b_per_s(self) -> float:
        return self.gpu.bandwidth * self.speedup * self.clocks[1]

    def decode_ns(self, context_tokens: int) -> float:
        """Reading the weights and the KV cache of all running contexts once; the FLOPs of decoding hide behind it."""
        return 1e9 * (self.weights_b + self.model.kv_bytes_per_token * context_tokens) / self._read_b_per_s


def engine(
    gpu: str,
    model: str,
    dtype: str,
    slots: int,
    *,
    max_batched_tokens: int = MAX_BATCHED_TOKENS,
    prefix_cache: bool = False,
    predict_tokens: int = PREDICT_TOKENS,
    power_limit_w: float | None = None,
    speedup: float = 1.0,
    temp_limit_c: float | None = None,
) -> Engine:
    """The engine of these names. Raises UsageError with every problem: unknown names, no slots, too large a model."""
    problems = [
        f"simulator {what} {name!r} is unknown: choose {', '.join(known)}"
        for what, name, known in (("GPU", gpu, GPUS), ("model", model, MODELS), ("dtype", dtype, DTYPES))
        if name not in known
    ]
    if not 1 <= slots <= max_batched_tokens // 2:
        problems.append(f"simulator slots are {slots}: give 1 to {max_batched_tokens // 2}, half of the batched tokens")
    card = GPUS.get(gpu)
    if card and power_limit_w is not None and not card.idle_w < power_limit_w <= card.max_w:
        problems.append(
            f"simulator power limit is {power_limit_w:g} W: give more than {card.idle_w:g} W, which {gpu} draws when "
            f"idle, and at most {card.max_w:g} W"
        )
    if temp_limit_c is not None and not IDLE_C < temp_limit_c <= IDLE_C + HEATS_C:
        problems.append(
            f"simulator temperature limit is {temp_limit_c:g} C: give more than {IDLE_C:g} C, which an idle GPU "
            f"has, and at most {IDLE_C + HEATS_C:g} C"
        )
    if not problems:
        made = Engine(
            GPUS[gpu],
            MODELS[model],
            dtype,
            slots,
            max_batched_tokens,
            prefix_cache,
            predict_tokens,
            power_limit_w,
            speedup,
            temp_limit_c,
        )
        if made.blocks >= 1:
            return made
        problems.append(
            f"model {model} in {dtype} does not fit one simulated {gpu}: weights of {made.weights_b / 1e9:.1f} GB and "
            f"overhead of {OVERHEAD_B / 1e9:.1f} exceed {GPU_MEMORY_UTILISATION:.0%} of {made.gpu.vram_b / 1e9:.1f} GB"
            "; choose a larger GPU, a smaller model or fp8"
        )
    raise UsageError("\n".join(problems))
