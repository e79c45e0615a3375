"""`LLM`: text in, text out, in the caller's process. The names are those of vLLM's and TensorRT-LLM's LLM classes.

    with LLM("pelton-tiny") as llm:
        for out in llm.generate(["def fibonacci(n):"], SamplingParams(max_tokens=64)):
            print(out.outputs[0].text)
"""

from __future__ import annotations

import asyncio
import operator
import weakref
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pelton.engine.executor import Executor
from pelton.engine.options import resolve_engine
from pelton.errors import RequestError, error_of_kind
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

    def __init__(self, tokenizer: Tokenizer, request: Request, prompt: str | None):
        params = request.sampling_params
        self._texts = [CompletionText(tokenizer, request.input_token_ids, params) for _ in range(params.n)]
        self.result = RequestOutput(request.request_id, prompt, list(request.input_token_ids),
                                    [CompletionOutput(i) for i in range(params.n)])

    def push(self, output: Output) -> int | None:
        """Takes in one piece of news of a completion that has not ended.

        Returns:
            How many output tokens it has if a stop string ended it before the engine did: the engine must be told.
        """
        completion = self.result.outputs[output.index]
        self.result.num_cached_tokens = max(self.result.num_cached_tokens, output.num_cached_tokens)
        if output.prompt_logprobs is not None:
            self.result.prompt_logprobs = output.prompt_logprobs
        news = self._texts[output.index].push(output)
        completion.text += news.text
        completion.token_ids += news.token_ids
        if output.logprobs is not None:
            completion.logprobs = (completion.logprobs or []) + output.logprobs[:len(news.token_ids)]
        completion.finish_reason, completion.stop_reason = news.finish_reason, news.stop_reason
        return len(completion.token_ids) if news.is_early_stop else None


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
        # The engine's thread holds the executor, but nobody holds an LLM that was let go of without shutdown().
        weakref.finalize(self, self._executor.shutdown).atexit = False

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 sampling_params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[RequestOutput]:
        """Completes all prompts and returns the results in their order.

        Args:
            prompts: strings, lists of token ids, `{"prompt_token_ids": [...]}` or `{"prompt": "..."}`; one or many.
            sampling_params: one for all, or one per prompt.

        Raises:
            RequestError: a prompt is empty, too long or of the wrong type; the text says which, and nothing was run.
            CapacityError: others fill the queue. EngineDeadError: the engine was shut down.
        """
        batch = [prompts] if _is_one_prompt(prompts) else list(prompts)
        made = []
        for i, (prompt, params) in enumerate(zip(batch, _spread(sampling_params, len(batch)), strict=True)):
            try:
                made.append(self._make_request(prompt, params))
            except RequestError as error:
                if len(batch) == 1:
                    raise
                raise RequestError(f"prompts[{i}]: {error}", param=error.param, code=error.code) from None
        assemblies = {request.request_id: _Assembly(self.tokenizer, request, text) for request, text in made}
        self._executor.run((request for request, _ in made), lambda output: assemblies[output.request_id].push(output))
        return [assembly.result for assembly in assemblies.values()]

    async def generate_async(self, prompt: Prompt,
                             sampling_params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Completes one prompt, yielding its result after each piece of news: the same object, grown.

        Closing the iterator cancels the request.

        Raises:
            RequestError: the prompt is empty, too long or of the wrong type. CapacityError: the queue is full.
            EngineDeadError: the engine was shut down. PeltonError: it failed at this request.
        """
        request, text = self._make_request(prompt, *_spread(sampling_params, 1))
        assembly = _Assembly(self.tokenizer, request, text)
        result = assembly.result
        loop = asyncio.get_running_loop()
        news: asyncio.Queue[list[Output]] = asyncio.Queue()

        def deliver(outputs: list[Output]) -> None:
            try:
                loop.call_soon_threadsafe(news.put_nowait, outputs)
            except RuntimeError:  # the event loop is closed: nobody reads any more
                self._executor.cancel(request.request_id)

        self._executor.enqueue_request(request, deliver)
        try:
            while not result.finished:
                for output in await news.get():
                    if output.finish_reason == "error":
                        raise error_of_kind(output.error_kind, output.error or "the engine gave no reason")
                    if result.outputs[output.index].finish_reason is not None:
                        continue  # on its way when the stop string was found
                    num_tokens = assembly.push(output)
                    if num_tokens is not None:
                        self._executor.finish(request.request_id, output.index, num_tokens)
                yield result
        finally:
            if not result.finished:
                self._executor.cancel(request.request_id)

    def chat(self, messages: list[dict[str, Any]], sampling_params: SamplingParams | None = None) -> RequestOutput:
        """Completes a conversation in OpenAI's message format through the model's chat template.

        Raises:
            RequestError: the model has no template, or it refuses the messages; further as `generate`.
        """
        return self.generate(self.chat_prompt(messages), sampling_params)[0]

    def chat_prompt(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """A conversation as a prompt for `generate`."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return {"prompt": text, "prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}

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
            ids = self.tokenizer.encode(text) if text else []  # not even a bos token alone
        if not ids:
            raise RequestError("prompt is empty: give at least one token", param="prompt", code="empty_prompt")
        if params.bad_words:
            banned = params.bad_words_token_ids + self.tokenizer.encode_bad_words(params.bad_words)
            params = msgspec.structs.replace(params, bad_words_token_ids=banned)
        return self._executor.validate(Request(ids, sampling_params=params)), text


def _is_one_prompt(prompts: Any) -> bool:
    """Whether it is a text, a dict, or a list of token ids."""
    return isinstance(prompts, (str, dict)) or (
        isinstance(prompts, (list, tuple)) and bool(prompts) and all(isinstance(entry, int) for entry in prompts))


def _spread(params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int) -> list[SamplingParams]:
    """One entry per prompt."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if not isinstance(params, (list, tuple)) or not all(isinstance(entry, SamplingParams) for entry in params):
        raise RequestError(f"sampling_params must be SamplingParams or a list of them, got {type(params).__name__}",
                           param="sampling_params")
    if len(params) != num_prompts:
        raise RequestError(f"sampling_params: {len(params)} given for {num_prompts} prompts; "
                           "give one for all or one each", param="sampling_params")
    return list(params)


def _read_prompt(prompt: Any) -> tuple[str | None, list[int] | None]:
    """(text, token ids): at least one of them is there."""
    text, ids = None, prompt
    if isinstance(prompt, str):
        text, ids = prompt, None
    elif isinstance(prompt, dict):
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if set(prompt) - {"prompt", "prompt_token_ids"} or (text is None and ids is None):
            raise RequestError(f"prompt has the keys {sorted(map(str, prompt))}; give 'prompt' or 'prompt_token_ids'",
                               param="prompt")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"prompt must be a string, got {type(text).__name__}", param="prompt")
    try:
        if isinstance(ids, (str, bytes)) or (text is None and ids is None):
            raise TypeError
        return text, None if ids is None else [operator.index(token) for token in ids]
    except TypeError:
        raise RequestError("prompt must be a string, a list of token ids or a dict with 'prompt' or "
                           f"'prompt_token_ids', got {ids!r:.80}", param="prompt") from None
