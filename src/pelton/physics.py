"""What hardware can do at most, and what a decoder asks of it: the roofline (Williams et al. 2009) of LLM inference.

Every time here is a lower bound and every rate an upper bound: weights are read once per step, each cached key and
value once per token that attends to it, arithmetic runs at the peak of its type, and reads overlap arithmetic fully.
Left out, because leaving them out keeps the bound a bound: activations, norms, communication between ranks, launches,
sampling, the network. `plan` predicts with these formulas, `build` and the metrics divide by them, and the benchmark
calls a result that beats them an artefact. Knows no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pelton.config import DTYPE_BYTES, ModelConfig
from pelton.errors import ConfigError

MIB, GIB = 2**20, 2**30
Bound = Literal["bandwidth", "compute"]
Arithmetic = Literal["float32", "bf16", "fp8", "int8"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One accelerator, or this machine's CPU. Arithmetic is dense (no sparsity) and accumulates in 32 bits."""

    name: str
    aliases: tuple[str, ...]
    """Other spellings, among them NVML's; case, punctuation and "NVIDIA" do not matter."""
    architecture: str
    """As in the engine manifest: "sm_90" or "cpu"."""
    memory_bytes: int
    """As the driver reports it."""
    cache_bytes: int
    """Last-level cache."""
    bandwidth: float
    """Memory reads, bytes/s."""
    flops: Mapping[Arithmetic, float]
    """Peak FLOP/s by type of the operands; a type it has no units for is absent."""
    sources: Mapping[str, str]
    """Where `memory_bytes`, `cache_bytes`, `bandwidth` and `flops` come from."""

    def peak_flops(self, arithmetic: Arithmetic) -> float:
        """FLOP/s for operands of a type; without units for it they are widened, to 16 bits where possible."""
        return self.flops.get(arithmetic) or self.flops.get("bf16") or self.flops["float32"]


def _nvidia(name: str, architecture: str, *aliases: str, mib: int, l2_mib: int, gb_s: float, source: str,
            bandwidth_source: str = "", flops_source: str = "", **tera_flops: float) -> Hardware:
    sources = {"memory_bytes": "memory.total of nvidia-smi", "cache_bytes": "L2 size as NVIDIA documents it",
               "bandwidth": bandwidth_source or source, "flops": flops_source or source}
    return Hardware(name=name, aliases=aliases, architecture=architecture, memory_bytes=mib * MIB,
                    cache_bytes=l2_mib * MIB, bandwidth=gb_s * 1e9,
                    flops={kind: rate * 1e12 for kind, rate in tera_flops.items()}, sources=sources)


_A100 = {"float32": 19.5, "bf16": 312.0, "int8": 624.0}
_H100_WHITEPAPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, table of peak rates (dense)"

HARDWARE: tuple[Hardware, ...] = (
    _nvidia("RTX A6000", "sm_86", "A6000", mib=49_140, l2_mib=6, gb_s=768, float32=38.7, bf16=154.8, int8=309.7,
            source="NVIDIA RTX A6000 datasheet (tensor rate halved: it is quoted with sparsity)"),
    _nvidia("RTX 4090", "sm_89", "4090", "GeForce RTX 4090", mib=24_564, l2_mib=72,
            gb_s=1_008, float32=82.6, bf16=165.2, fp8=330.3, int8=660.6,
            source="NVIDIA Ada GPU Architecture whitepaper, RTX 4090 column (FP32 accumulate)"),
    _nvidia("L40S", "sm_89", mib=46_068, l2_mib=96, gb_s=864, float32=91.6, bf16=362.05, fp8=733.0, int8=733.0,
            source="NVIDIA L40S datasheet (dense)"),
    _nvidia("A100 40GB PCIe", "sm_80", "A100-PCIE-40GB", mib=40_960, l2_mib=40, gb_s=1_555, **_A100,
            source="NVIDIA A100 Tensor Core GPU datasheet"),
    _nvidia("A100 40GB SXM", "sm_80", "A100-SXM4-40GB", "A100-40GB", mib=40_960, l2_mib=40, gb_s=1_555, **_A100,
            source="NVIDIA A100 Tensor Core GPU datasheet"),
    _nvidia("A100 80GB PCIe", "sm_80", "A100-PCIE-80GB", mib=81_920, l2_mib=40, gb_s=1_935, **_A100,
            source="NVIDIA A100 80GB datasheet"),
    _nvidia("A100 80GB SXM", "sm_80", "A100-SXM4-80GB", "A100-80GB", "A100", mib=81_920, l2_mib=40, gb_s=2_039, **_A100,
            source="NVIDIA A100 80GB datasheet"),
    _nvidia("H100 PCIe", "sm_90", mib=81_559, l2_mib=50, gb_s=2_039,
            float32=51.2, bf16=756.4, fp8=1_512.9, int8=1_512.9, source=_H100_WHITEPAPER),
    _nvidia("H100 SXM", "sm_90", "H100", "H100 80GB HBM3", mib=81_559, l2_mib=50, gb_s=3_352,
            float32=66.9, bf16=989.4, fp8=1_978.9, int8=1_978.9, source=_H100_WHITEPAPER),
    _nvidia("H200", "sm_90", "H200 SXM", mib=143_771, l2_mib=60, gb_s=4_580,
            float32=66.9, bf16=790.0, fp8=1_360.0, int8=1_978.9, source="NVIDIA H200 datasheet",
            bandwidth_source="measured: int64 sum over 8 GiB (datasheet: 4.8 TB/s)",
            flops_source="measured: largest library matrix products, bf16 and fp8 with row-wise scales (datasheet: "
                         "989 and 1,979 TFLOP/s); float32 and int8: NVIDIA H200 datasheet"),
    _nvidia("B200", "sm_100", "HGX B200", mib=183_359, l2_mib=126, gb_s=8_000,
            float32=80.0, bf16=2_250.0, fp8=4_500.0, int8=4_500.0,
            source="NVIDIA Blackwell Architecture technical brief, HGX B200 per GPU (dense)"),
)


def find_hardware(name: str) -> Hardware:
    """The table's entry for a name as people or NVML write it; "cpu" measures this machine (half a second).

    Raises:
        ConfigError: no such entry; the text lists them.
    """
    wanted = _plain(name)
    if wanted == "cpu":
        from pelton.host import measure_cpu

        return measure_cpu()
    for hardware in HARDWARE:
        if wanted in {_plain(spelling) for spelling in (hardware.name, *hardware.aliases)}:
            return hardware
    raise ConfigError(f"gpu must be one of {', '.join(h.name for h in HARDWARE)} or cpu, got {name!r}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", ""))


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How the matrices of the layers are stored. Embedding, head, norms and biases keep `other_bytes` each."""

    bytes_per_weight: float
    arithmetic: Arithmetic
    """Type the matrix products run in."""
    scale_group: int | None = None
    """Input weights that share one scale; 0: a whole row; None: no scales."""
    scale_bytes: int = 0
    other_bytes: int = 2

    def matrix_bytes(self, rows: int, columns: int) -> float:
        """Bytes of one [rows, columns] matrix with its scales."""
        num_scales = 0
        if self.scale_group is not None:
            num_scales = rows * (math.ceil(columns / self.scale_group) if self.scale_group else 1)
        return rows * columns * self.bytes_per_weight + num_scales * self.scale_bytes


_INT4 = WeightFormat(bytes_per_weight=0.5, arithmetic="bf16", scale_group=128, scale_bytes=2)
_FP8 = WeightFormat(bytes_per_weight=1, arithmetic="fp8", scale_group=0, scale_bytes=4)
WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "float32": WeightFormat(bytes_per_weight=4, arithmetic="float32", other_bytes=4),
    "bfloat16": WeightFormat(bytes_per_weight=2, arithmetic="bf16"),
    "float16": WeightFormat(bytes_per_weight=2, arithmetic="bf16"),
    "fp8": _FP8,
    "fp8-static": _FP8,
    "int8-sq": WeightFormat(bytes_per_weight=1, arithmetic="int8", scale_group=0, scale_bytes=4),
    "int8-wo": WeightFormat(bytes_per_weight=1, arithmetic="bf16", scale_group=0, scale_bytes=4),
    "int4-wo": _INT4,
    "int4-awq": _INT4,
    "int4-gptq": _INT4,
}
KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "fp8", "int8")


def weight_format(model: ModelConfig, name: str = "auto") -> WeightFormat:
    """The named format; auto is the checkpoint's own dtype.

    Raises:
        ConfigError: no such format.
    """
    resolved = model.dtype if name == "auto" else name
    if resolved not in WEIGHT_FORMATS:
        raise ConfigError(f"weight_dtype must be auto or one of {', '.join(WEIGHT_FORMATS)}, got {name!r}")
    return WEIGHT_FORMATS[resolved]


def kv_element_bytes(model: ModelConfig, kv_cache_dtype: str = "auto") -> float:
    """Bytes of one cached number; auto is the checkpoint's own dtype.

    Raises:
        ConfigError: no such type.
    """
    if kv_cache_dtype not in KV_DTYPES:
        raise ConfigError(f"kv_cache_dtype must be one of {', '.join(KV_DTYPES)}, got {kv_cache_dtype!r}")
    resolved = model.dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    return 1 if resolved == "fp8" else DTYPE_BYTES[resolved]


def layer_matrices(model: ModelConfig, *, tp_size: int = 1) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of the matrices of one layer on one rank: qkv, o, gate-up, down.

    Key and value heads fewer than ranks are repeated, so a rank holds at least one of each.
    """
    num_kv_heads = math.ceil(model.num_kv_heads / tp_size)
    q_size = model.q_size / tp_size
    rows = q_size + 2 * num_kv_heads * model.head_dim
    width = model.intermediate_size / tp_size
    shapes = ((rows, model.hidden_size), (model.hidden_size, q_size), (2 * width, model.hidden_size),
              (model.hidden_size, width))
    return tuple((math.ceil(r), math.ceil(c)) for r, c in shapes)


def layer_params(model: ModelConfig) -> int:
    """Weights in the matrices of all layers: what each token is multiplied with, the head aside."""
    return model.num_layers * sum(rows * columns for rows, columns in layer_matrices(model))


def head_params(model: ModelConfig) -> int:
    return model.vocab_size * model.hidden_size


def small_params(model: ModelConfig) -> int:
    """Norm weights and biases of the whole model."""
    norms = (4 if model.sandwich_norm else 2) * model.hidden_size + (2 * model.head_dim if model.qk_norm else 0)
    biases = (model.q_size + 2 * model.kv_size) * model.attention_bias + model.hidden_size * model.output_bias
    biases += (2 * model.intermediate_size + model.hidden_size) * model.mlp_bias
    return model.num_layers * (norms + biases) + model.hidden_size


def num_params(model: ModelConfig) -> int:
    """All parameters; a head tied to the embedding counts once."""
    tables = 1 if model.tie_word_embeddings else 2
    return layer_params(model) + tables * head_params(model) + small_params(model)


def weight_read_bytes(model: ModelConfig, weights: WeightFormat, *, tp_size: int = 1) -> float:
    """Bytes of weights one rank reads in a step: every layer and the head, whatever the batch.

    Of an untied embedding only the rows of the step's tokens are read: nothing beside the rest.
    """
    layer = sum(weights.matrix_bytes(rows, columns) for rows, columns in layer_matrices(model, tp_size=tp_size))
    return (model.num_layers * layer + head_params(model) * weights.other_bytes / tp_size
            + small_params(model) * weights.other_bytes)


def weight_memory_bytes(model: ModelConfig, weights: WeightFormat, *, tp_size: int = 1) -> int:
    """Bytes of weights one rank holds: what a step reads, and an untied embedding."""
    embedding = 0 if model.tie_word_embeddings else head_params(model) * weights.other_bytes / tp_size
    return math.ceil(weight_read_bytes(model, weights, tp_size=tp_size) + embedding)


def kv_bytes_per_token(model: ModelConfig, kv_cache_dtype: str = "auto", *, tp_size: int = 1) -> int:
    """KV cache bytes of one token on one rank: 2 x layers x KV heads x head_dim x bytes.

    The heads are the cache's own (grouped-query attention), not the query heads.
    """
    num_kv_heads = math.ceil(model.num_kv_heads / tp_size)
    return int(2 * model.num_layers * num_kv_heads * model.head_dim * kv_element_bytes(model, kv_cache_dtype))


def kv_read_bytes(model: ModelConfig, context_tokens: float, kv_cache_dtype: str = "auto", *,
                  tp_size: int = 1) -> float:
    """KV cache bytes one token reads on one rank when it attends to `context_tokens`; windowed layers read less."""
    per_layer = kv_bytes_per_token(model, kv_cache_dtype, tp_size=tp_size) / model.num_layers
    return per_layer * sum(min(context_tokens, window) for window in _windows(model))


def attention_flops(model: ModelConfig, start: int, stop: int) -> float:
    """FLOPs of q·k and p·v for the tokens at positions [start, stop) under the causal mask and the layers' windows.

    A token at position t sees n = min(t + 1, window) tokens: 2 x n x q_size for the scores, as much for the sums.
    """
    return 4 * model.q_size * sum(_visible(stop, window) - _visible(start, window) for window in _windows(model))


def prefill_flops(model: ModelConfig, num_tokens: int, *, num_cached_tokens: int = 0) -> float:
    """FLOPs to process one prompt up to its first sampled token; tokens found in a prefix cache are not computed.

    2 x layer_params x new tokens + attention + 2 x head_params (the head runs for the last token alone).
    """
    assert 0 <= num_cached_tokens < num_tokens
    new = num_tokens - num_cached_tokens
    return (2 * layer_params(model) * new + attention_flops(model, num_cached_tokens, num_tokens)
            + 2 * head_params(model))


def _windows(model: ModelConfig) -> list[float]:
    return [model.window(layer) or math.inf for layer in range(model.num_layers)]


def _visible(num_tokens: int, window: float) -> float:
    """Sum over positions 0 .. num_tokens - 1 of the tokens each one sees."""
    inside = min(num_tokens, window)
    outside = window * (num_tokens - window) if num_tokens > window else 0
    return inside * (inside + 1) / 2 + outside


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The least time a piece of work can take, and which of memory reads or arithmetic sets it."""

    read_s: float
    """Bytes over bandwidth."""
    compute_s: float
    """FLOPs over peak FLOP/s, each part at the peak of its type."""

    @property
    def seconds(self) -> float:
        return max(self.read_s, self.compute_s)

    @property
    def serial_s(self) -> float:
        """The same work when reads and arithmetic do not overlap: what engines that run one kernel at a time meet."""
        return self.read_s + self.compute_s

    @property
    def bound(self) -> Bound:
        return "bandwidth" if self.read_s >= self.compute_s else "compute"


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """A model with given weight and cache types on given hardware; tensor-parallel ranks work side by side."""

    model: ModelConfig
    hardware: Hardware
    weight_dtype: str = "auto"
    """A key of WEIGHT_FORMATS, or auto."""
    kv_cache_dtype: str = "auto"
    """One of KV_DTYPES."""
    tp_size: int = 1
    grant_cache: bool = False
    """Let as many bytes as the last-level cache holds come free: the strict bound, which small models need. Weights
    that stay in the cache from step to step beat the plain one; beside billions of parameters it makes no odds."""

    @property
    def weights(self) -> WeightFormat:
        return weight_format(self.model, self.weight_dtype)

    def decode_step(self, batch_size: int, context_tokens: float = 0) -> Limit:
        """One token for each of `batch_size` sequences, each attending to `context_tokens` cached ones."""
        model, tp = self.model, self.tp_size
        read = weight_read_bytes(model, self.weights, tp_size=tp)
        read += batch_size * kv_read_bytes(model, context_tokens, self.kv_cache_dtype, tp_size=tp)
        attended = sum(min(context_tokens, window) for window in _windows(model))
        wide = 2 * head_params(model) + 4 * model.q_size * attended
        return self._limit(read, batch_size * 2 * layer_params(model), batch_size * wide)

    def decode_tokens_per_s(self, batch_size: int, context_tokens: float = 0) -> float:
        """Most output tokens/s of a batch whose sequences attend to `context_tokens` on average."""
        return batch_size / self.decode_step(batch_size, context_tokens).seconds

    def prefill(self, num_tokens: int, *, num_cached_tokens: int = 0, num_prompts: int = 1) -> Limit:
        """`num_prompts` prompts of `num_tokens` each, up to their first tokens: the floor of the last one's TTFT.

        Weights are read once: all prompts may share a step. Cached prefixes are read, not computed.
        """
        model = self.model
        total = prefill_flops(model, num_tokens, num_cached_tokens=num_cached_tokens)
        narrow = 2 * layer_params(model) * (num_tokens - num_cached_tokens)
        read = weight_read_bytes(model, self.weights, tp_size=self.tp_size)
        read += num_prompts * kv_read_bytes(model, num_cached_tokens, self.kv_cache_dtype, tp_size=self.tp_size)
        return self._limit(read, num_prompts * narrow, num_prompts * (total - narrow))

    def ttft_s(self, num_tokens: int, *, num_cached_tokens: int = 0, num_prompts: int = 1) -> float:
        """Least seconds to the last first token of `num_prompts` prompts that arrive together."""
        return self.prefill(num_tokens, num_cached_tokens=num_cached_tokens, num_prompts=num_prompts).seconds

    def full_load(self, input_tokens: int, output_tokens: int, batch_size: int) -> Limit:
        """Per request, at `batch_size` kept running: prefill, then every decode step's share.

        Output tokens/s at full load are at most output_tokens / seconds.
        """
        context = input_tokens + output_tokens / 2
        step, prompt = self.decode_step(batch_size, context), self.prefill(input_tokens)
        steps = output_tokens - 1
        # A prompt can ride in steps that read the weights anyway, so its own reads are not added.
        return Limit(read_s=steps * step.read_s / batch_size,
                     compute_s=prompt.compute_s + steps * step.compute_s / batch_size)

    def _limit(self, read_bytes: float, matrix_flops: float, wide_flops: float) -> Limit:
        """Read bytes are one rank's, FLOPs all ranks'; `wide_flops` (attention, head) run in 16 bits or wider."""
        wide_type: Arithmetic = "float32" if self.weights.arithmetic == "float32" else "bf16"
        seconds = (matrix_flops / self.hardware.peak_flops(self.weights.arithmetic)
                   + wide_flops / self.hardware.peak_flops(wide_type))
        if self.grant_cache:
            read_bytes = max(0.0, read_bytes - self.hardware.cache_bytes)
        return Limit(read_s=read_bytes / self.hardware.bandwidth, compute_s=seconds / self.tp_size)
