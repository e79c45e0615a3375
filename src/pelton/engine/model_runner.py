"""`ModelRunner`: token ids in, token ids out, a whole batch at a time, as TensorRT-LLM's example runner does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pelton.config import ExecutorConfig
from pelton.engine.executor import Executor
from pelton.errors import PeltonError
from pelton.types import Request, SamplingParams


class ModelRunner:
    """An engine for callers who hold token ids.

    Make it with `ModelRunner.from_dir(engine_dir)`.
    """

    def __init__(self, executor: Executor):
        self._executor = executor

    @classmethod
    def from_dir(cls, engine_dir: str | Path, config: ExecutorConfig | None = None) -> ModelRunner:
        """Loads an engine directory.

        Raises:
            EngineError: the directory is refused. CapacityError: it does not fit.
        """
        return cls(Executor(engine_dir, config))

    def generate(self, batch_input_ids: Sequence[Sequence[int] | torch.Tensor], max_new_tokens: int,
                 temperature: float = 1.0, top_p: float = 1.0, *, top_k: int = 0, seed: int | None = None,
                 end_id: int | None = None, pad_id: int = 0) -> torch.Tensor:
        """Completes a batch of prompts.

        Args:
            batch_input_ids: one list or 1-d tensor of token ids per prompt.
            end_id: ends a completion; the model's own end-of-sequence ids when None.

        Returns:
            [batch, 1, longest] int32: prompt and completion, filled up with pad_id.

        Raises:
            RequestError: a prompt or a sampling value is out of range.
        """
        params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_new_tokens)
        end_ids = () if end_id is None else (end_id,)
        requests = [Request([int(token) for token in ids], sampling_params=params, end_ids=end_ids)
                    for ids in batch_input_ids]
        for request in requests:
            self._executor.enqueue_request(request)
        rows = [request.input_token_ids + self._collect(request.request_id) for request in requests]
        longest = max((len(row) for row in rows), default=0)
        out = torch.full((len(rows), 1, longest), pad_id, dtype=torch.int32)
        for i, row in enumerate(rows):
            out[i, 0, :len(row)] = torch.tensor(row, dtype=torch.int32)
        return out

    def shutdown(self) -> None:
        self._executor.shutdown()

    def __enter__(self) -> ModelRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _collect(self, request_id: str) -> list[int]:
        tokens: list[int] = []
        while True:
            for output in self._executor.await_response(request_id):
                if output.finish_reason == "error":
                    raise PeltonError(output.error or "the engine reported an error without a text")
                tokens += output.token_ids
                if output.finish_reason is not None:
                    return tokens
