"""Triton Inference Server: the generate extension, and KServe v2's infer for whole answers.

A model's metadata names its inputs, and they decide how a request is spelt: TensorRT-LLM's ensemble takes max_tokens
and min_tokens as tensors, the vLLM backend one JSON text of sampling_parameters, any other model gets parameters.
Both back ends count tokens when asked to (return_num_input_tokens, return_num_output_tokens); of a stream every event
has the number of its own. Prompts are plain text: no template applies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pelton.bench.client import Exchange, Failure
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.protocols.answer import Answer, begin_answer, error_text, has_body, read_count, read_object
from pelton.bench.protocols.dialect import OutputControl
from pelton.bench.protocols.sse import read_events
from pelton.errors import ConfigError

COUNTS = ("return_num_input_tokens", "return_num_output_tokens", "return_finish_reason", "exclude_input_in_output")
EMPTY_LISTS = ("bad_words", "stop_words")  # older ensembles want them though nothing is banned


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input of a model, as its metadata has it."""

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GenerateDialect:
    """`/v2/models/NAME/generate` and `generate_stream`."""

    model: str
    temperature: float
    inputs: Mapping[str, Tensor]
    prefix: str = ""
    """Path before /v2."""
    extra: dict[str, Any] = field(default_factory=dict)
    output_control: OutputControl = "max_tokens"
    can_stream: bool = True

    def __post_init__(self) -> None:
        is_asked_by_top_k = not self.temperature and {"max_tokens", "top_k"} <= set(self.inputs)
        if is_asked_by_top_k and "top_k" in self.extra:
            raise ConfigError("extra_inputs must leave out top_k, by which this model is asked for temperature 0; give "
                              "a temperature above 0")

    def route(self, *, stream: bool) -> str:
        return f"/{self.prefix}/v2/models/{self.model}/{'generate_stream' if stream else 'generate'}"

    def body(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        return msgspec.json.encode(self.fields(prompt, output_tokens=output_tokens, stream=stream))

    def fields(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> dict[str, Any]:
        """The request's inputs by name."""
        found: dict[str, Any] = {"text_input": prompt.text}
        found |= {name: True for name in COUNTS if name in self.inputs}
        found |= {name: "" for name in EMPTY_LISTS if name in self.inputs}
        if "stream" in self.inputs:
            found["stream"] = stream
        sampling, extra = self._sampling(output_tokens), dict(self.extra)
        if "max_tokens" in self.inputs:
            found |= {name: value for name, value in sampling.items() if name in self.inputs}
            if not self.temperature and "top_k" in self.inputs:
                found["top_k"] = 1  # some versions refuse a temperature of 0
                found.pop("temperature", None)
        elif "sampling_parameters" in self.inputs:
            sampling |= extra.pop("sampling_parameters", {})
            found["sampling_parameters"] = msgspec.json.encode(sampling).decode()
        else:
            found["parameters"] = sampling | extra.pop("parameters", {})
        return found | extra

    def _sampling(self, output_tokens: int) -> dict[str, Any]:
        found: dict[str, Any] = {"max_tokens": output_tokens, "temperature": self.temperature}
        if "min_tokens" in self.output_control:
            found["min_tokens"] = output_tokens
        if "ignore_eos" in self.output_control:
            found["ignore_eos"] = True
        return found

    def output_variants(self, *, fixed: bool) -> Sequence[GenerateDialect]:
        """What the model declares, for Triton hands on unknown fields without a word."""
        control: OutputControl = "max_tokens"
        if fixed and "min_tokens" in self.inputs:
            control = "min_tokens"
        elif fixed and "sampling_parameters" in self.inputs:
            control = "ignore_eos+min_tokens"
        return [dataclasses.replace(self, output_control=control)]

    def stream_variants(self) -> Sequence[GenerateDialect]:
        return [self]

    def read(self, exchange: Exchange, *, stream: bool) -> Answer:
        answer = begin_answer(exchange)
        if not has_body(exchange, stream=stream):
            return answer
        if stream:
            self._read_stream(exchange, answer)
        else:
            try:
                answer.text = _read_outputs(read_object(exchange.response.body), answer)
            except (ValueError, TypeError) as error:
                answer.failure = Failure("malformed", f"the answer is no generation: {str(error)[:200]}")
        return answer

    def _read_stream(self, exchange: Exchange, answer: Answer) -> None:
        if answer.failure is None and not exchange.response.is_event_stream:
            kind = exchange.response.headers.get("content-type", "no content type")
            answer.failure = Failure("malformed", f"asked for a stream, got {kind}")
            return
        texts: list[str] = []
        for stamp, event in read_events(exchange.response.pieces):
            answer.count_chunk(stamp)
            try:
                data = read_object(event)
                if data.get("error"):
                    answer.failure = Failure("stream_error", error_text(event))
                    break
                text = _read_outputs(data, answer)
            except (ValueError, TypeError) as error:
                answer.failure = Failure("malformed", f"event {event[:80]!r} is no generation: {str(error)[:120]}")
                break
            texts.append(text)
            answer.stamp_text(stamp, "", text)
        answer.text = "".join(texts)
        if answer.failure is None and not answer.num_chunks:
            answer.failure = Failure("dropped", "the stream ended without an event")


@dataclass(frozen=True, kw_only=True)
class InferDialect(GenerateDialect):
    """KServe v2's `/v2/models/NAME/infer`: named tensors in, named tensors out, whole answers only."""

    can_stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.extra if name not in self.inputs and name != "parameters"]
        if unknown:
            raise ConfigError(f"extra_inputs must name inputs of the model, which has no {', '.join(unknown)}")

    def route(self, *, stream: bool) -> str:
        return f"/{self.prefix}/v2/models/{self.model}/infer"

    def body(self, prompt: Prompt, *, output_tokens: int, stream: bool) -> bytes:
        fields = self.fields(prompt, output_tokens=output_tokens, stream=False)
        parameters = fields.pop("parameters", None)
        tensors = [{"name": name, "datatype": tensor.datatype, "shape": [1 for _ in tensor.shape], "data": [value]}
                   for name, value in fields.items() if (tensor := self.inputs.get(name)) is not None]
        request: dict[str, Any] = {"inputs": tensors}
        if parameters is not None:
            request["parameters"] = parameters
        return msgspec.json.encode(request)

    def read(self, exchange: Exchange, *, stream: bool) -> Answer:
        answer = begin_answer(exchange)
        if has_body(exchange, stream=False):
            try:
                outputs = read_object(exchange.response.body)["outputs"]
                answer.text = _read_outputs({o["name"]: o["data"] for o in outputs}, answer)
            except (ValueError, TypeError, KeyError) as error:
                answer.failure = Failure("malformed", f"the answer is no inference: {str(error)[:200]}")
        return answer


def read_inputs(metadata: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs of a model's metadata.

    Raises:
        KeyError, TypeError: it is none.
    """
    return {entry["name"]: Tensor(entry["datatype"], tuple(entry["shape"])) for entry in metadata["inputs"]}


def _read_outputs(outputs: Mapping[str, Any], answer: Answer) -> str:
    """The text of an event or of an answer; its counts go into the answer.

    Raises:
        ValueError: it has none.
    """
    text = outputs.get("text_output")
    if isinstance(text, list) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise ValueError(f"no text_output among {', '.join(outputs) or 'nothing'}")
    num_in, num_out = read_count(outputs, "num_input_tokens"), read_count(outputs, "num_output_tokens")
    if num_in is not None:
        answer.prompt_tokens = num_in
    if num_out is not None:
        answer.output_tokens = (answer.output_tokens or 0) + num_out
    reason = outputs.get("finish_reason")
    if isinstance(reason, list) and reason:
        reason = reason[0]
    if isinstance(reason, str) and reason not in ("", "None"):
        answer.finish_reason = reason
    return text
