"""Configuration as frozen dataclasses: one docstring per field, one place for each default.

The command line makes its options from these classes; `from_dict` reads them from JSON and refuses unknown keys.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from pelton.errors import ConfigError, located

T = TypeVar("T")

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1, "int4": 0.5}
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
SchedulingPolicy = Literal["max_utilization", "guaranteed_no_evict"]
TOKENS_PER_BLOCK = (16, 32, 64, 128)


def _require(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {want}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its scalings, with Hugging Face's parameter names."""

    theta: float = 10000.0
    """Base of the frequencies."""
    kind: RopeKind = "default"
    rotary_dim: int | None = None
    """Leading dimensions of each head that are rotated; None rotates all."""
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    """Context length the model was trained with before scaling."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """Multiplier of cos and sin (yarn, longrope); None derives it from the factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    """Round yarn's correction range to whole dimensions."""
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a decoder-only transformer, in one vocabulary for all architectures."""

    architecture: str
    """`architectures[0]` of the Hugging Face config."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope: RopeConfig = RopeConfig()
    norm_eps: float = 1e-6
    norm_weight_offset: float = 0.0
    """Added to every norm weight before use (Gemma stores weight - 1)."""
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Whether q, k and v have a bias."""
    output_bias: bool = False
    """Whether the attention output projection has a bias."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before rotation."""
    sandwich_norm: bool = False
    """Extra norms after attention and after the MLP, before each residual sum (Gemma 2)."""
    attention_scale: float | None = None
    """Multiplier of q·k; None is head_dim ** -0.5."""
    attention_softcap: float | None = None
    """c in c·tanh(scores / c)."""
    logits_softcap: float | None = None
    embedding_scale: float = 1.0
    sliding_window: int | None = None
    """A token sees itself and the window - 1 tokens before it, in layers of kind 'sliding'."""
    layer_kinds: tuple[Literal["full", "sliding"], ...] = ()
    """One per layer; empty means all full."""
    dtype: Dtype = "bfloat16"
    """Type of the stored weights, as the checkpoint's config says."""
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads",
                     "head_dim", "max_position_embeddings"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, name, value, "a positive integer")
        _require(self.num_heads % self.num_kv_heads == 0, "num_kv_heads", self.num_kv_heads,
                 f"a divisor of num_heads ({self.num_heads})")
        _require(len(self.layer_kinds) in (0, self.num_layers), "layer_kinds", self.layer_kinds,
                 f"empty or {self.num_layers} long")

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def context_len(self) -> int:
        """Tokens the model can take: dynamic rope scaling stretches the context it was trained with by its factor."""
        stretch = self.rope.factor if self.rope.kind == "dynamic" else 1.0
        return int(self.max_position_embeddings * stretch)

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer in tokens, None for full attention."""
        return self.sliding_window if self.layer_kinds and self.layer_kinds[layer] == "sliding" else None


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a model is split over ranks."""

    tp_size: int = 1
    """Ranks that share each layer."""
    pp_size: int = 1
    """Stages of consecutive layers."""

    def __post_init__(self) -> None:
        _require(self.tp_size >= 1, "tp_size", self.tp_size, "at least 1")
        _require(self.pp_size >= 1, "pp_size", self.pp_size, "at least 1")

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Limits fixed into an engine directory."""

    dtype: Dtype | Literal["auto"] = "auto"
    """Type of weights and activations; auto keeps the checkpoint's."""
    kv_cache_dtype: Literal["auto"] = "auto"
    """Type of the KV cache; auto follows dtype."""
    max_batch_size: int = 256
    """Sequences that may run in one step."""
    max_seq_len: int | None = None
    """Prompt plus output tokens of one sequence; none: the model's context length, at most 32,768."""
    max_input_len: int | None = None
    """Longest prompt in tokens; none: max_seq_len - 1."""
    max_num_tokens: int = 8192
    """Tokens one step may run, over all sequences."""
    tokens_per_block: Literal[16, 32, 64, 128] = 64
    """Tokens in one block of the KV cache."""

    def __post_init__(self) -> None:
        _require(1 <= self.max_batch_size <= 4096, "max_batch_size", self.max_batch_size, "between 1 and 4096")
        _require(self.max_num_tokens >= 1, "max_num_tokens", self.max_num_tokens, "at least 1")
        _require(self.tokens_per_block in TOKENS_PER_BLOCK, "tokens_per_block", self.tokens_per_block,
                 "one of 16, 32, 64, 128")
        for name in ("max_seq_len", "max_input_len"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")


@dataclass(frozen=True, kw_only=True)
class RandomWeights:
    """Weights made up on the device in place of an engine directory's."""

    seed: int = 0
    build: BuildConfig = BuildConfig()
    """The limits, which an engine directory would hold."""


@dataclass(frozen=True, kw_only=True)
class KvCacheConfig:
    """The paged KV cache at run time. Field names follow TensorRT-LLM."""

    enable_block_reuse: bool = True
    """Share the blocks of equal prefixes between requests."""
    tokens_per_block: Literal[16, 32, 64, 128] | None = None
    """Must equal the engine's own when given; it is fixed at build."""
    max_blocks: int | None = None
    """Blocks to allocate; none: what free_memory_fraction allows."""
    free_memory_fraction: float = 0.9
    """Share of the memory left beside weights and activations that the cache may take."""

    def __post_init__(self) -> None:
        _require(0.0 < self.free_memory_fraction <= 1.0, "free_memory_fraction", self.free_memory_fraction,
                 "above 0 and at most 1")
        _require(self.max_blocks is None or self.max_blocks >= 1, "max_blocks", self.max_blocks, "at least 1")
        _require(self.tokens_per_block in (None, *TOKENS_PER_BLOCK), "tokens_per_block", self.tokens_per_block,
                 "one of 16, 32, 64, 128")


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """How an engine runs. Field names follow TensorRT-LLM's."""

    max_batch_size: int | None = None
    """Sequences in one step; none: the engine's limit."""
    max_num_tokens: int | None = None
    """Tokens in one step; none: the engine's limit."""
    in_flight_batching: bool = True
    """Off: a batch is filled, run until its last member ends, then the next is filled (static batching)."""
    scheduling_policy: SchedulingPolicy = "max_utilization"
    """max_utilization admits while blocks last and preempts (recomputing later) when they run out;
    guaranteed_no_evict admits only what is sure to finish."""
    enable_chunked_prefill: bool = True
    """Split long prompts over steps, so that running requests keep going."""
    chunked_prefill_size: int | None = None
    """Prompt tokens of one step while other requests run or wait; none: what max_num_tokens leaves, but 2,048 in
    `pelton serve`. Smaller steps answer sooner, larger ones are more efficient."""
    overlap: bool = True
    """Schedule and launch the next step while this one runs."""
    max_queue_size: int = 16384
    """Requests that may wait; one more is refused."""
    kv_cache_config: KvCacheConfig = KvCacheConfig()
    num_threads: int | None = None
    """CPU threads of the runner; none: one per physical core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_num_tokens", "chunked_prefill_size", "num_threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(self.max_queue_size >= 1, "max_queue_size", self.max_queue_size, "at least 1")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The HTTP server."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free port."""
    port_file: str | None = None
    """Write the port here once the server is ready; the file appears whole."""
    served_model_name: str | None = None
    """Name in /v1/models; none: the model as it was given."""
    api_key: str | None = None
    """Required as `Authorization: Bearer KEY` on every route but /health when given."""
    max_body_bytes: int = 32 * 2**20
    """Larger request bodies are refused with 413."""
    chat_template: str | None = None
    """File with a jinja template that takes the place of the model's own."""
    generation_config: Literal["auto", "none"] = "auto"
    """Whether temperature, top_k, top_p, min_p and repetition_penalty that a request leaves out are those of the
    model's generation_config.json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    random_weights: bool = False
    """Make weights up on the device from the model's config.json. Its tokenizer is used where there is one; without,
    prompts and texts are the tokens' numbers."""
    seed: int = 0
    """Seed of random weights."""

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, "port", self.port, "between 0 and 65535")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types."""
    return msgspec.to_builtins(config)


def from_dict(cls: type[T], data: dict[str, Any], *, where: str = "") -> T:
    """Makes a config dataclass from JSON types; nested ones too.

    Raises:
        ConfigError: an unknown key, a missing one or a wrong type; the text names the field and `where` it stood.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(data, dict):
        raise ConfigError(f"{prefix}expected an object, got {type(data).__name__}")
    _refuse_unknown(cls, data, prefix, path="")
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise ConfigError(prefix + _explain(cls, error)) from None


def _explain(cls: type, error: msgspec.ValidationError) -> str:
    """The error with the field's name first, and what it may be where that is a short list."""
    path, text = located(error)
    if not path or not text.startswith(("Expected", "Invalid")):  # the classes' own checks name the field
        return text
    hint: Any = cls
    for name in path.split("."):
        hint = typing.get_type_hints(hint).get(name.partition("[")[0]) if dataclasses.is_dataclass(hint) else None
    members = [hint, *typing.get_args(hint)]
    choices = [str(choice) for member in members if typing.get_origin(member) is Literal
               for choice in typing.get_args(member)]
    return f"{path}: {text}" + (f"; it can be {', '.join(dict.fromkeys(choices))}" if choices else "")


def _refuse_unknown(cls: type, data: dict[str, Any], prefix: str, path: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in fields:
            raise ConfigError(f"{prefix}unknown key {path}{key!r}; known are {', '.join(fields)}")
        nested = fields[key].default
        if dataclasses.is_dataclass(nested) and isinstance(value, dict):
            _refuse_unknown(type(nested), value, prefix, f"{path}{key}.")


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, for `--help`."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        docs |= own_field_docs(base)
    return docs


def own_field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field that the class itself declares."""
    docs: dict[str, str] = {}
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    for node, after in itertools.pairwise(body):
        is_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.AnnAssign) and is_doc and isinstance(after.value.value, str):
            docs[node.target.id] = " ".join(after.value.value.split())
    return docs
