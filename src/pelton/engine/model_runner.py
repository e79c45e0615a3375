"""`ModelRunner`: token ids in, token ids out, a whole batch at a time, as TensorRT-LLM's example runner does."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch

from pelton.config import ExecutorConfig
from pelton.engine.executor import Executor
from pelton.errors import RequestError
from pelton.types import Request, SamplingParams


class ModelRunner:
    """An engine for callers who hold token ids.

    Make it with `ModelRunner.from_dir(engine_dir)`.
    """

    def __init__(self, executor: Executor):
        self._executor = executor
        weakref.finalize(self, executor.shutdown).atexit = False

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
        requests = [self._executor.validate(Request(_token_ids(ids), sampling_params=params, end_ids=end_ids))
                    for ids in batch_input_ids]
        rows = {request.request_id: list(request.input_token_ids) for request in requests}
        self._executor.run(requests, lambda output: rows[output.request_id].extend(output.token_ids))
        return _pad(list(rows.values()), pad_id)

    def shutdown(self) -> None:
        self._executor.shutdown()

    def __enter__(self) -> ModelRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


def _token_ids(ids: Sequence[int] | torch.Tensor) -> list[int]:
    ids = ids.tolist() if isinstance(ids, torch.Tensor) else ids
    try:
        return [operator.index(token) for token in ids]
    except TypeError:
        raise RequestError(f"batch_input_ids must hold one list or 1-d tensor of token ids per prompt, got {ids!r:.80}",
                           param="batch_input_ids") from None


def _pad(rows: list[list[int]], pad_id: int) -> torch.Tensor:
    longest = max((len(row) for row in rows), default=0)
    out = torch.full((len(rows), 1, longest), pad_id, dtype=torch.int32)
    for i, row in enumerate(rows):
        out[i, 0, :len(row)] = torch.tensor(row, dtype=torch.int32)
    return out
