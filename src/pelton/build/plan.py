"""`pelton plan`: what a model needs and can reach at most on a GPU, from its shape alone. Needs no GPU and no weights.

Speeds are limits (pelton/physics.py), not forecasts of an engine: what an engine reaches is a share of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pelton import physics
from pelton.build.limits import resolve_limits
from pelton.config import BuildConfig, ModelConfig
from pelton.errors import ConfigError
from pelton.ledger import Ledger, fit_choices, predict_ledger, what_would_fit
from pelton.manifest import Limits
from pelton.models.registry import get_architecture
from pelton.physics import HARDWARE, Hardware, Limit, Roofline, find_hardware

WeightDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8-static", "int8-sq", "int8-wo", "int4-wo",
                      "int4-awq", "int4-gptq"]
KvDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8", "int8"]
DEFAULT_INPUT_LEN, DEFAULT_OUTPUT_LEN = 1024, 256


def _require(ok: bool, name: str, value: object, want: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {want}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `pelton plan`."""

    model: str
    """Hub id, checkpoint directory, engine directory or pelton-tiny; only its config.json is read."""
    gpu: str | None = None
    """One GPU, as H200 or "RTX 4090", or cpu for this machine; none: a table of all."""
    weight_dtype: WeightDtype = "auto"
    """Type of the layers' matrices, or a quantization scheme; auto: the checkpoint's."""
    kv_cache_dtype: KvDtype = "auto"
    """Type of the KV cache; auto: the checkpoint's."""
    tp_size: int = 1
    """GPUs that share each layer."""
    max_batch_size: int = BuildConfig.max_batch_size
    """Sequences that may run in one step."""
    max_seq_len: int | None = None
    """Prompt plus output tokens of one sequence; none: the model's context length, at most 32,768."""
    max_input_len: int | None = None
    """Longest prompt in tokens; none: max_seq_len - 1."""
    max_num_tokens: int = BuildConfig.max_num_tokens
    """Tokens one step may run, over all sequences."""
    tokens_per_block: Literal[16, 32, 64, 128] = BuildConfig.tokens_per_block
    """Tokens in one block of the KV cache."""
    input_len: int | None = None
    """Prompt tokens of the requests that concurrency and speed are told for; none: 1,024, or what fits max_seq_len."""
    output_len: int | None = None
    """Output tokens of these requests; none: 256, or what fits max_seq_len."""
    batch_sizes: tuple[int, ...] = (1, 8, 32, 128)
    """Batches to tell the speed of."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        _require(self.tp_size >= 1, "tp_size", self.tp_size, "at least 1")
        for name in ("input_len", "output_len"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(len(self.batch_sizes) >= 1, "batch_sizes", self.batch_sizes, "at least one number")
        for size in self.batch_sizes:
            _require(size >= 1, "batch_sizes", size, "at least 1")
        self.build  # noqa: B018  BuildConfig checks the limits

    @property
    def build(self) -> BuildConfig:
        """The limits as `pelton build` would take them."""
        return BuildConfig(max_batch_size=self.max_batch_size, max_seq_len=self.max_seq_len,
                           max_input_len=self.max_input_len, max_num_tokens=self.max_num_tokens,
                           tokens_per_block=self.tokens_per_block)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Limits of one batch size."""

    batch_size: int
    decode_step: Limit
    """One token for each sequence, at the mean context of the requests."""
    prefill: Limit
    """All prompts of the batch, arriving together."""
    fits: bool
    """Whether the KV cache holds the whole batch at full length."""

    @property
    def tokens_per_s(self) -> float:
        return self.batch_size / self.decode_step.seconds


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A model on one kind of hardware."""

    hardware: Hardware
    ledger: Ledger
    max_seq_len: int
    input_len: int
    output_len: int
    max_concurrency: int
    """Requests of input_len + output_len tokens that run at once: what the KV cache and max_batch_size allow."""
    speeds: tuple[Speed, ...]
    full_load: Limit | None
    """Per request with max_concurrency running; none where nothing fits."""
    remedies: tuple[str, ...]
    """Changes that each alone would make it fit; empty where it fits."""

    @property
    def fits(self) -> bool:
        """Whether one sequence of max_seq_len fits."""
        return self.ledger.num_sequences(self.max_seq_len) >= 1

    @property
    def full_load_tokens_per_s(self) -> float | None:
        return self.output_len / self.full_load.seconds if self.full_load else None


def run_plan(options: PlanOptions) -> int:
    """Prints the plan; exit code 1 when the one GPU asked for cannot hold the model.

    Raises:
        ConfigError, CheckpointError: an option or the model is unusable.
    """
    from pelton.build import plan_report
    from pelton.checkpoint.hf_config import load_model_config
    from pelton.checkpoint.hub import resolve_config

    model = load_model_config(resolve_config(options.model))
    names = [options.gpu] if options.gpu else [*(hardware.name for hardware in HARDWARE), "cpu"]
    plans = [make_plan(model, find_hardware(name), options) for name in names]
    if options.json:
        plan_report.print_json(model, options, plans)
    elif options.gpu:
        plan_report.print_one(model, options, plans[0])
    else:
        plan_report.print_all(model, options, plans)
    return int(bool(options.gpu) and not plans[0].fits)


def make_plan(model: ModelConfig, hardware: Hardware, options: PlanOptions) -> Plan:
    """Ledger, capacity and limits of a model on given hardware.

    Raises:
        ConfigError: tp_size does not divide the model, or lengths or limits contradict each other.
    """
    _check_split(model, options.tp_size)
    limits = resolve_limits(options.build, model)
    input_len, output_len = _request_lengths(options, limits)
    ledger = _ledger(model, hardware, options)
    roofline = Roofline(model=model, hardware=hardware, weight_dtype=options.weight_dtype,
                        kv_cache_dtype=options.kv_cache_dtype, tp_size=options.tp_size)
    capacity = min(ledger.num_sequences(input_len + output_len), options.max_batch_size)
    speeds = tuple(
        Speed(batch_size=size, decode_step=roofline.decode_step(size, input_len + output_len / 2),
              prefill=roofline.prefill(input_len, num_prompts=size), fits=size <= capacity)
        for size in options.batch_sizes)
    fits = ledger.num_sequences(limits.max_seq_len) >= 1
    return Plan(hardware=hardware, ledger=ledger, max_seq_len=limits.max_seq_len, input_len=input_len,
                output_len=output_len, max_concurrency=capacity, speeds=speeds,
                full_load=roofline.full_load(input_len, output_len, capacity) if capacity else None,
                remedies=() if fits else remedies(model, hardware, options))


def remedies(model: ModelConfig, hardware: Hardware, options: PlanOptions) -> tuple[str, ...]:
    """Single changes to the options after which one sequence of max_seq_len fits, gentlest first."""
    choices = fit_choices(model, options.build)
    choices["tp_size"] = [size for size in (2, 4, 8) if size > options.tp_size and _can_split(model, size)]
    choices = {"max_batch_size": choices.pop("max_batch_size"), "kv_cache_dtype": ["fp8"], **choices}
    if hardware.architecture == "cpu":
        del choices["tp_size"]

    def ledger_of(**change: Any) -> Ledger:
        return _ledger(model, hardware, dataclasses.replace(options, input_len=None, output_len=None, **change))

    return tuple(f"--{name.replace('_', '-')} {value}"
                 for name, value, _ in what_would_fit(model, options.build, ledger_of, choices))


def _ledger(model: ModelConfig, hardware: Hardware, options: PlanOptions) -> Ledger:
    return predict_ledger(model, options.build, hardware, weight_dtype=options.weight_dtype,
                          kv_cache_dtype=options.kv_cache_dtype, tp_size=options.tp_size)


def _request_lengths(options: PlanOptions, limits: Limits) -> tuple[int, int]:
    """(input_len, output_len); what was not asked for shrinks to what the limits allow."""
    room = limits.max_seq_len - (options.input_len or 1)
    output_len = options.output_len or max(1, min(DEFAULT_OUTPUT_LEN, room if options.input_len else room // 2))
    input_len = options.input_len or max(1, min(DEFAULT_INPUT_LEN, limits.max_input_len,
                                                limits.max_seq_len - output_len))
    _require(input_len <= limits.max_input_len, "input_len", input_len,
             f"at most max_input_len, {limits.max_input_len}")
    _require(input_len + output_len <= limits.max_seq_len, "input_len + output_len", input_len + output_len,
             f"at most max_seq_len, {limits.max_seq_len}")
    return input_len, output_len


def _check_split(model: ModelConfig, tp_size: int) -> None:
    """Raises ConfigError when a tensor of the model does not divide over `tp_size` ranks."""
    if tp_size > 1:
        for spec in get_architecture(model.architecture).weights(model):
            if spec.shard != "none":
                spec.rank_shape(tp_size)


def _can_split(model: ModelConfig, tp_size: int) -> bool:
    try:
        _check_split(model, tp_size)
    except ConfigError:
        return False
    return True


assert set(physics.WEIGHT_FORMATS) | {"auto"} == set(WeightDtype.__args__)
assert set(physics.KV_DTYPES) == set(KvDtype.__args__)
