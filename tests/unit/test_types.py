"""Sampling parameters and requests: what Python's constructors take, and what they refuse by name."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from pelton.errors import RequestError
from pelton.types import Request, SamplingParams


@pytest.mark.parametrize(("params", "match"), [
    ({"temperature": -0.1}, "temperature must be between 0 and 100, got -0.1"),
    ({"temperature": 1e9}, "temperature"),
    ({"temperature": float("nan")}, "temperature must be a finite number"),
    ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"temperature": None}, "temperature must be a number"),
    ({"temperature": True}, "temperature must be a number"),
    ({"top_p": 0.0}, "top_p must be above 0"), ({"top_p": 1.1}, "top_p"), ({"top_p": float("inf")}, "top_p"),
    ({"top_k": -2}, "top_k"), ({"top_k": 2**31}, "top_k"), ({"top_k": 1.0}, "top_k must be an integer"),
    ({"min_p": -0.1}, "min_p"), ({"min_p": 1.1}, "min_p"),
    ({"presence_penalty": 2.1}, "presence_penalty"), ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"), ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"n": 0}, "n must be between 1 and 128"), ({"n": 129}, "n must"), ({"n": "2"}, "n must be an integer"),
    ({"n": None}, "n must be an integer"),
    ({"max_tokens": 0}, "max_tokens must be at least 1"), ({"max_tokens": 1.5}, "max_tokens must be an integer"),
    ({"min_tokens": -1}, "min_tokens must be 0 or more"),
    ({"min_tokens": 17}, r"min_tokens must be at most max_tokens \(16\)"),
    ({"min_tokens": 2**31, "max_tokens": None}, "min_tokens must be 0 or more and below"),
    ({"seed": 2**63}, "seed must be a 64-bit integer"), ({"seed": 1.0}, "seed must be an integer"),
    ({"logprobs": 21}, "logprobs must be between 0 and 20"), ({"logprobs": -1}, "logprobs"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"stop": [""]}, "stop must be a list of non-empty strings"), ({"stop": 5}, "stop must be a list"),
    ({"stop": ["a", 1]}, "stop must be"), ({"stop": "x", "detokenize": False}, "stop must be empty"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"), ({"stop_token_ids": ["a"]}, "stop_token_ids"),
    ({"bad_words": [""]}, "bad_words"), ({"bad_words_token_ids": [[]]}, "bad_words_token_ids"),
    ({"bad_words_token_ids": [1]}, "bad_words_token_ids"), ({"bad_words_token_ids": [["a"]]}, "bad_words_token_ids"),
    ({"logit_bias": {1: 101.0}}, "logit_bias must be between"), ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias"), ({"logit_bias": {"a": 1.0}}, "logit_bias"),
    ({"logit_bias": {1: "a"}}, "logit_bias"), ({"logit_bias": [1]}, "logit_bias"),
])
def test_a_wrong_value_is_refused_by_name(params, match):
    with pytest.raises(RequestError, match=match) as caught:
        SamplingParams(**params)
    assert caught.value.param in params
    assert caught.value.status == 400


def test_an_unknown_name_is_refused():
    with pytest.raises(TypeError, match="bogus"):
        SamplingParams(bogus=1)


def test_lists_strings_and_other_libraries_numbers_become_plain():
    params = SamplingParams(temperature=np.float32(0.5), seed=np.int64(3), top_k=np.int32(4), stop="end",
                            stop_token_ids=[1, 2], bad_words=["a"], bad_words_token_ids=[[1, 2]])
    assert (params.stop, params.stop_token_ids, params.bad_words) == (("end",), (1, 2), ("a",))
    assert (type(params.temperature), type(params.seed), type(params.top_k)) == (float, int, int)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == SamplingParams(
        temperature=0.5, seed=3, top_k=4, stop=("end",), stop_token_ids=(1, 2), bad_words=("a",),
        bad_words_token_ids=((1, 2),))


def test_edges_that_are_allowed():
    for params in ({"temperature": 0}, {"top_k": -1}, {"n": 128}, {"seed": -(2**63)}, {"seed": 2**63 - 1},
                   {"max_tokens": None}, {"logprobs": 0}, {"logit_bias": {0: -100}}, {"min_tokens": 16},
                   {"top_p": 1}, {"detokenize": False}):
        SamplingParams(**params)


def test_a_request_names_itself_and_takes_its_token_limit():
    first, second = Request([1]), Request([1], max_new_tokens=5, sampling_params=SamplingParams(temperature=0.0))
    assert first.request_id != second.request_id
    assert second.sampling_params == SamplingParams(temperature=0.0, max_tokens=5)
    assert 0 < first.arrival_time <= second.arrival_time
    with pytest.raises(RequestError, match="max_tokens"):
        Request([1], max_new_tokens=0)
    with pytest.raises(RequestError, match="arrival_time"):
        Request([1], arrival_time=float("nan"))
