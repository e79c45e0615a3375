"""`LLM`: text in, text out, in the caller's process. The names are those of vLLM's and TensorRT-LLM's LLM classes.

    with LLM("pelton-tiny") as llm:
        for out in llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=64)):
            print(out.outputs[0].text)
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pelton.engine.executor import Executor
from pelton.engine.options import resolve_engine
from pelton.errors import PeltonError, RequestError
from pelton.tokenizer.completion import CompletionText
from pelton.tokenizer.tokenizer import Tokenizer
from pelton.types import FinishReason, Output, Request, SamplingParams, TokenLogprobs

Prompt = str | dict[str, Any] | Sequence[int]


@dataclass
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the chosen tokens' log-probabilities, None unless logprobs were asked for."""
        return None if self.logprobs is None else sum(entry.logprobs[0] for entry in self.logprobs)


@dataclass
class RequestOutput:
    """A prompt and its completions, so far or in full."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0

    @property
    def finished(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.outputs)


class _Assembly:
    """Turns the engine's news of one request into its RequestOutput, matching stop strings on the way."""

    def __init__(self, executor: Executor, tokenizer: Tokenizer, request: Request, prompt: str | None):
        params = request.sampling_params
        self._executor = executor
        self._texts = [CompletionText(tokenizer, request.input_token_ids, params) for _ in range(params.n)]
        self.result = RequestOutput(request.request_id, prompt, list(request.input_token_ids),
                                    [CompletionOutput(i) for i in range(params.n)])

    def push(self, output: Output) -> None:
        """Takes in one piece of news.

        Raises:
            PeltonError: the engine could not run the request.
        """
        if output.finish_reason == "error":
            raise PeltonError(output.error or "the engine reported an error without a text")
        completion = self.result.outputs[output.index]
        if completion.finish_reason is not None:
            return
        self.result.num_cached_tokens = max(self.result.num_cached_tokens, output.num_cached_tokens)
        if output.prompt_logprobs is not None:
            self.result.prompt_logprobs = output.prompt_logprobs
        news = self._texts[output.index].push(output)
        completion.text += news.text
        completion.token_ids += news.token_ids
        if output.logprobs is not None:
            completion.logprobs = (completion.logprobs or []) + output.logprobs[:len(news.token_ids)]
        completion.finish_reason, completion.stop_reason = news.finish_reason, news.stop_reason
        if news.is_early_stop:
            self._executor.finish(self.result.request_id, output.index, len(completion.token_ids))


class LLM:
    """A model ready to generate.

    Args:
        model: a Hugging Face id, a checkpoint directory, an engine directory, or "pelton-tiny".
        options: fields of BuildConfig (dtype, max_seq_len, ...) and ExecutorConfig (max_batch_size, ...).

    Raises:
        ConfigError: an option is unknown or out of range. CheckpointError, EngineError: the model is refused.
        CapacityError: it does not fit.
    """

    def __init__(self, model: str | Path, **options: Any):
        self.engine_dir, run = resolve_engine(str(model), options)
        self.tokenizer = Tokenizer.from_dir(self.engine_dir / "tokenizer")
        self._executor = Executor(self.engine_dir, run)

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 sampling_params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[RequestOutput]:
        """Completes all prompts and returns the results in their order.

        Args:
            prompts: strings, `{"prompt_token_ids": [...]}`, or `{"prompt": "..."}`; one or many.
            sampling_params: one for all, or one per prompt.

        Raises:
            RequestError: a prompt is empty, too long or of the wrong type; the text says which.
        """
        batch = [prompts] if isinstance(prompts, (str, dict)) else list(prompts)
        params = sampling_params if sampling_params is not None else SamplingParams()
        per_prompt = [params] * len(batch) if isinstance(params, SamplingParams) else list(params)
        if len(per_prompt) != len(batch):
            raise RequestError(f"sampling_params: {len(per_prompt)} given for {len(batch)} prompts; "
                               "give one for all or one each", param="sampling_params")
        made = [self._make_request(prompt, p) for prompt, p in zip(batch, per_prompt, strict=True)]
        for request, _ in made:
            self._executor.loop.scheduler.validate(request)
        return self._run_all(made)

    def _run_all(self, made: list[tuple[Request, str | None]]) -> list[RequestOutput]:
        assemblies = {request.request_id: _Assembly(self._executor, self.tokenizer, request, text)
                      for request, text in made}
        news: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        num_open = len(made)
        try:
            for request, _ in made:
                self._executor.enqueue_request(request, news.put)
            while num_open:
                for output in news.get():
                    assembly = assemblies[output.request_id]
                    was_finished = assembly.result.finished
                    assembly.push(output)
                    num_open -= assembly.result.finished and not was_finished
        except BaseException:
            for request_id in assemblies:
                self._executor.cancel(request_id)
            raise
        return [assembly.result for assembly in assemblies.values()]

    async def generate_async(self, prompt: Prompt,
                             sampling_params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Completes one prompt, yielding the result so far after each piece of news. Closing it cancels the request."""
        request, text = self._make_request(prompt, sampling_params or SamplingParams())
        assembly = _Assembly(self._executor, self.tokenizer, request, text)
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[list[Output]] = asyncio.Queue()
        self._executor.enqueue_request(request, _into_loop(loop, news))
        try:
            while not assembly.result.finished:
                for output in await news.get():
                    assembly.push(output)
                yield assembly.result
        finally:
            if not assembly.result.finished:
                self._executor.cancel(request.request_id)

    def chat(self, messages: list[dict[str, Any]], sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Completes a conversation in OpenAI's message format through the model's chat template."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return self.generate([{"prompt_token_ids": ids, "prompt": text}], sampling_params)[0]

    def shutdown(self) -> None:
        """Stops the engine and frees its memory. May be called twice."""
        self._executor.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()

    def _make_request(self, prompt: Prompt, params: SamplingParams) -> tuple[Request, str | None]:
        text, ids = _read_prompt(prompt)
        if ids is None:
            assert text is not None
            ids = self.tokenizer.encode(text)
        if params.bad_words:
            banned = params.bad_words_token_ids + self.tokenizer.encode_bad_words(params.bad_words)
            params = msgspec.structs.replace(params, bad_words_token_ids=banned)
        return Request(ids, sampling_params=params), text


def _read_prompt(prompt: Prompt) -> tuple[str | None, list[int] | None]:
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, dict):
        if not prompt or set(prompt) - {"prompt", "prompt_token_ids"}:
            raise RequestError(f"prompt has the keys {sorted(prompt)}; give 'prompt' or 'prompt_token_ids'",
                               param="prompt")
        ids = prompt.get("prompt_token_ids")
        return prompt.get("prompt"), None if ids is None else [int(i) for i in ids]
    try:
        return None, [int(i) for i in prompt]
    except (TypeError, ValueError):
        raise RequestError(f"prompt must be a string, a list of token ids or a dict, got {type(prompt).__name__}",
                           param="prompt") from None


def _into_loop(loop: asyncio.AbstractEventLoop, news: asyncio.Queue[list[Output]]) -> Callable[[list[Output]], None]:
    return lambda outputs: loop.call_soon_threadsafe(news.put_nowait, outputs)
