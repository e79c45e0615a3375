"""Runner: one step on one rank, as two launches that return at once.

`forward` applies a batch's changes to the slots and runs the model up to the logits; `sample` draws the tokens. Both
are queued in order (on a thread for a CPU, on a stream for a GPU), so that the next step's forward pass finds the last
step's tokens in the slots without their ever being waited for. On a GPU, steps that only decode, and short prompts,
replay CUDA graphs.
Knows neither requests nor text.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import torch

from pelton.cache.pool import KvPool
from pelton.config import ExecutorConfig, ModelConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.kernels.registry import load_ops
from pelton.ledger import Ledger
from pelton.manifest import EngineLimits, Limits
from pelton.models.registry import get_architecture
from pelton.physics import weight_format, weight_memory_bytes
from pelton.runner.device import CpuQueue, CudaQueue, Signal, make_queue, one_thread
from pelton.runner.inputs import Layout, PromptRows, SampledRows, decode_rows, lay_out, make_inputs
from pelton.runner.limits import narrow
from pelton.runner.padding import padded, row_sizes, token_sizes
from pelton.runner.sampler import Drawn, Scores, draw, score_prompt
from pelton.runner.slots import Slots
from pelton.types import Batch, Masks, StepOutput

if TYPE_CHECKING:
    from pelton.runner.graphs import DecodeGraphs
    from pelton.runner.prompt_graphs import PromptGraphs


class Decoder(Protocol):
    """The model; `models/decoder.py` has the one that all architectures share so far."""

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor, kv_pool: KvPool,
                meta: AttentionMetadata) -> torch.Tensor:
        """[T], [T] -> hidden states [T, D]; writes the tokens' keys and values."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, D] -> [R, V] float32."""


class Step:
    """A launched step."""

    def __init__(self, batch: Batch):
        self.batch = batch
        self.sampled: SampledRows | None = None
        self.prompt_rows: list[PromptRows] = []
        self.logits: torch.Tensor | None = None  # [R, V] float32; none if no row is sampled
        self.prompt_scores: list[Scores] = []  # one per row of prompt_rows
        self.drawn: Drawn | None = None
        self.done: Signal | None = None
        self._error: Exception | None = None

    def result(self) -> StepOutput:
        """Waits for the step's tokens. Call it after `Runner.sample`.

        Raises:
            Exception: whatever went wrong in the step.
        """
        assert self.done is not None, "result() before sample()"
        self.done.wait()
        if self._error is not None:
            raise self._error
        prompt_logprobs = {
            rows.slot: scores.to_entries([rows.num_top] * len(rows.targets))
            for rows, scores in zip(self.prompt_rows, self.prompt_scores, strict=True)}
        return StepOutput(
            step_id=self.batch.step_id, slots=self.sampled.slots.tolist(),
            token_ids=self.drawn.tokens.tolist() if self.drawn else [],
            logprobs=self.drawn.logprobs() if self.drawn else None, prompt_logprobs=prompt_logprobs or None)

    def run(self, job: Callable[[Step], None]) -> None:
        """Runs one of the step's jobs unless one before it failed; keeps its error for `result`."""
        if self._error is None:
            try:
                job(self)
            except Exception as error:
                self._error = error


class Runner:
    """A model, its KV cache and its slots.

    Args:
        decoder: the model; its weights are on `device`.
        pool: the KV cache.
        limits: `num_blocks` is the pool's.
        queue: where steps run; none makes one.

    Attributes:
        ledger: where the memory goes; None for a runner that was not loaded from an engine directory.
    """

    def __init__(self, decoder: Decoder, pool: KvPool, limits: EngineLimits, model_config: ModelConfig, *,
                 device: torch.device, queue: CpuQueue | None = None):
        self.model_config = model_config
        self.limits = limits
        self.num_blocks = limits.num_blocks
        self.eos_ids = model_config.eos_ids
        self.ledger: Ledger | None = None
        self._decoder = decoder
        self._pool = pool
        self._slots = Slots(num_slots=limits.max_batch_size, max_seq_len=limits.max_seq_len,
                            tokens_per_block=limits.tokens_per_block, vocab_size=limits.vocab_size, device=device)
        self._queue = queue or make_queue(device)
        self._is_padded = device.type == "cuda"
        self._token_sizes, self._row_sizes = token_sizes(limits.max_num_tokens), row_sizes(limits.max_batch_size)
        self._decode_graphs: DecodeGraphs | None = None
        self._prompt_graphs: PromptGraphs | None = None

    @classmethod
    def from_engine(cls, engine_dir: Path, config: ExecutorConfig) -> Runner:
        """Loads an engine directory; decides the number of KV blocks before anything is allocated.

        Raises:
            EngineError: the directory is refused.
            ConfigError: the configuration asks for more than was built.
            CapacityError: it does not fit into memory.
        """
        from pelton.runner.load import load_engine

        engine = load_engine(Path(engine_dir), config)
        manifest = engine.manifest
        try:
            runner = cls.from_weights(manifest.model, engine.weights, engine.limits,
                                      num_blocks=engine.ledger.num_blocks, wait_for_weights=engine.wait,
                                      kv_dtype=getattr(torch, manifest.kv_cache_dtype), device=engine.device,
                                      num_threads=engine.num_threads)
        finally:
            engine.wait()
        if engine.kernels is not None:
            engine.kernels.report()
        runner.ledger = engine.ledger
        return runner

    @classmethod
    def from_weights(cls, model_config: ModelConfig, weights: dict[str, torch.Tensor], limits: Limits, *,
                     num_blocks: int, kv_dtype: torch.dtype | None = None, device: torch.device | str = "cpu",
                     num_threads: int | None = None, wait_for_weights: Callable[[], None] = lambda: None) -> Runner:
        """A runner over weights that are in memory, or on their way.

        Args:
            weights: canonical name -> tensor on `device`. The decoder empties the dict, so that a tensor it keeps in
                another layout is freed.
            kv_dtype: of the KV cache; none: the embedding's.
            num_threads: of torch's operators on a CPU; none leaves torch's own choice.
            wait_for_weights: returns once they have their values, called when all is done that does not need them.
        """
        device = torch.device(device)

        def make() -> tuple[KvPool, Decoder]:
            pool = KvPool(num_blocks, model_config.num_layers, model_config.num_kv_heads, limits.tokens_per_block,
                          model_config.head_dim, kv_dtype or weights["embed.weight"].dtype, device)
            return pool, load_decoder_class(model_config)(model_config, weights)

        final = EngineLimits(
            max_batch_size=limits.max_batch_size, max_seq_len=limits.max_seq_len, max_input_len=limits.max_input_len,
            max_num_tokens=limits.max_num_tokens, tokens_per_block=limits.tokens_per_block, num_blocks=num_blocks,
            vocab_size=model_config.vocab_size)
        if device.type == "cuda":
            pool, decoder = make()
            runner = cls(decoder, pool, final, model_config, device=device)
        else:
            queue = CpuQueue(num_threads)
            try:
                pool, decoder = queue.call(make)
                with one_thread():
                    runner = cls(decoder, pool, final, model_config, device=device, queue=queue)
            except BaseException:
                queue.close()
                raise
        runner.warm_up(wait_for_weights)
        return runner

    @classmethod
    def from_config(cls, model_config: ModelConfig, limits: Limits, config: ExecutorConfig, *, seed: int = 0) -> Runner:
        """A runner over made-up weights of any shape, in the model's own type, without a file.

        Raises:
            ConfigError: no GPU where one is asked for. CapacityError: it does not fit into memory.
        """
        from pelton.runner.load import choose_device, default_num_threads
        from pelton.runner.memory import plan_memory
        from pelton.runner.random_weights import make_random_weights

        device = choose_device(config.device)
        limits = narrow(limits, config)
        dtype = model_config.dtype
        ledger = plan_memory(model_config, limits, config.kv_cache_config, dtype=dtype, kv_dtype=dtype, device=device,
                             weights_bytes=weight_memory_bytes(model_config, weight_format(model_config, dtype)))
        with one_thread() if device.type == "cpu" else nullcontext():
            weights = make_random_weights(model_config, getattr(torch, dtype), device, seed)
        runner = cls.from_weights(model_config, weights, limits, num_blocks=ledger.num_blocks, device=device,
                                  num_threads=config.num_threads or default_num_threads())
        runner.ledger = ledger
        return runner

    def describe(self) -> dict[str, Any]:
        """What runs on which GPU, as plain data; nothing on a CPU."""
        device = self._slots.device
        if device.type != "cuda":
            return {}
        return {"gpu": torch.cuda.get_device_name(device), "model": msgspec.to_builtins(self.model_config),
                "kv_cache_dtype": str(self._pool.data.dtype).removeprefix("torch.")}

    def forward(self, batch: Batch) -> Step:
        """Queues the forward pass of a batch."""
        step = Step(batch)
        self._queue.submit(lambda: step.run(self._forward))
        return step

    def sample(self, step: Step, masks: Masks | None) -> None:
        """Queues the drawing of a step's tokens; after it `step.result()` can be waited for."""
        self._queue.submit(lambda: step.run(lambda step: self._sample(step, masks)))
        step.done = self._queue.signal()

    def close(self) -> None:
        """Finishes what is queued."""
        self._queue.close()

    def forget(self, slots: list[int]) -> None:
        """Frees slots without a step."""
        self._queue.submit(lambda: self._slots.apply(Batch(0, [], [], [], [], 0, [], [], slots)))

    def warm_up(self, wait_for_weights: Callable[[], None] = lambda: None) -> None:
        """On a GPU: compiles every kernel that a step may launch and captures the graphs. Nothing is compiled or
        captured afterwards. Call it once, before the first step; it leaves no trace in the slots."""
        if isinstance(self._queue, CudaQueue):
            from pelton.runner.warmup import warm_up

            warm_up(self, wait_for_weights)

    def run_products(self, num_tokens: int) -> None:
        """Queues a layer's products over tokens that mean nothing."""
        self._queue.submit(lambda: self._decoder.run_products(num_tokens))

    def capture_graphs(self) -> None:
        """Captures the graphs of decode steps and of short prompts, if the kernels can be captured."""
        if hasattr(load_ops(self._slots.device.type).attention, "workspace_bytes"):
            from pelton.runner.graphs import DecodeGraphs
            from pelton.runner.prompt_graphs import PromptGraphs

            parts = self._decoder, self._pool, self._slots
            decodes = DecodeGraphs(*parts, self.limits.max_batch_size)
            prompts = PromptGraphs(*parts, self.limits.max_num_tokens)
            self._queue.wait_for_caller()
            memory = torch.cuda.graph_pool_handle()
            self._queue.submit(lambda: prompts.capture(memory))
            self._queue.submit(lambda: decodes.capture(memory))
            self._decode_graphs, self._prompt_graphs = decodes, prompts

    def _forward(self, step: Step) -> None:
        batch, slots, rope = step.batch, self._slots, self.model_config.rope
        slots.apply(batch)
        decodes = self._decode_graphs and decode_rows(batch, slots, rope)
        if decodes is not None:
            slots.push(batch)
            step.logits, step.sampled = self._decode_graphs.replay(decodes)
            return
        layout = lay_out(batch, slots, rope)
        hidden, step.sampled, row_index = self._run_layout(batch, layout)  # [T, D]
        num_sampled = len(step.sampled.slots)
        if num_sampled:
            is_all = num_sampled == len(hidden)
            logits = self._decoder.logits(hidden if is_all else hidden.index_select(0, row_index))
            step.logits = logits[:num_sampled]
        step.prompt_rows = layout.prompt_rows
        for rows in layout.prompt_rows:
            chunk = hidden[rows.first_row:rows.first_row + len(rows.targets)]
            step.prompt_scores.append(score_prompt(chunk, rows.targets, rows.num_top, self.limits.vocab_size,
                                                   self._decoder.logits, slots.staging))

    def _run_layout(self, batch: Batch, layout: Layout) -> tuple[torch.Tensor, SampledRows, torch.Tensor]:
        """Hidden states [T, D] of a step with prompts, its sampled rows, and where they are, [R] int64. On a GPU there
        may be more of the states and places, which mean nothing."""
        if self._prompt_graphs is not None and self._prompt_graphs.takes(layout):
            result = self._prompt_graphs.replay(layout)
            self._slots.push(batch)  # the graph does not wait for it: it brings its own tables and tokens
            return result
        self._slots.push(batch)
        if self._is_padded:
            layout = layout.padded(padded(layout.num_tokens, self._token_sizes),
                                   padded(len(layout.row_index), self._row_sizes))
        inputs = make_inputs(layout, self._slots)
        hidden = self._decoder.forward(inputs.token_ids, inputs.positions, self._pool, inputs.meta)
        return hidden, inputs.sampled, inputs.row_index

    def _sample(self, step: Step, masks: Masks | None) -> None:
        if step.logits is not None:
            step.drawn = draw(step.logits, self._slots, step.sampled, masks)
            step.logits = None


def load_decoder_class(config: ModelConfig) -> type:
    """The class that runs an architecture; its module is imported now.

    Raises:
        CheckpointError: the architecture is not supported.
    """
    module, _, name = get_architecture(config.architecture).decoder.partition(":")
    return getattr(importlib.import_module(module), name)
