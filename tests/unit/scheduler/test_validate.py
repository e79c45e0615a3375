import pytest
from helpers.harness import Harness, make_config, make_request

from pelton.errors import CapacityError, RequestError
from pelton.types import Request, SamplingParams


def refuse(harness, request, match, param="input_token_ids"):
    with pytest.raises(RequestError, match=match) as caught:
        harness.scheduler.validate(request)
    assert caught.value.param == param
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_empty_prompt():
    refuse(Harness(), Request([]), "at least one token")


@pytest.mark.parametrize(("limits", "most", "reason"), [
    ({"max_input_len": 10}, 10, "max_input_len"),
    ({"max_seq_len": 12, "max_input_len": 12}, 11, "max_seq_len less one"),
    ({"num_blocks": 3}, 12, "all 3 blocks of 4 tokens"),
])
def test_too_long_names_what_would_fit(limits, most, reason):
    harness = Harness(**limits)
    harness.scheduler.validate(make_request([1] * most))
    refuse(harness, make_request([1] * (most + 1)), f"holds {most + 1} tokens; at most {most} fit .*{reason}")


def test_longer_than_a_step_only_in_chunks():
    harness = Harness(max_num_tokens=8)
    harness.scheduler.validate(make_request([1] * 9))
    harness = Harness(make_config(chunked=False), max_num_tokens=8)
    refuse(harness, make_request([1] * 9), "at most 8 fit .*enable_chunked_prefill")


@pytest.mark.parametrize("token", [-1, 50, 2**40])
def test_ids_outside_the_vocabulary(token):
    harness = Harness(vocab_size=50)
    refuse(harness, make_request([1, token]), f"from 0 to 49, got {token}")


@pytest.mark.parametrize(("name", "value"), [
    ("stop_token_ids", (3, 50)), ("logit_bias", {3: 1.0, 99: 1.0}), ("bad_words_token_ids", ((3,), (4, 77)))])
def test_sampling_ids_outside_the_vocabulary(name, value):
    refuse(Harness(vocab_size=50), make_request([1], **{name: value}), name, param=name)


def test_end_ids_outside_the_vocabulary():
    refuse(Harness(vocab_size=50), Request([1], end_ids=(50,)), "end_ids", param="end_ids")


def test_an_id_in_use():
    harness = Harness()
    harness.add([1], request_id="twice", max_tokens=2)
    refuse(harness, make_request([1], request_id="twice"), "'twice' is in use", param="request_id")
    harness.run()
    harness.scheduler.validate(make_request([1], request_id="twice"))


def test_a_full_queue():
    harness = Harness(make_config(max_queue_size=3))
    harness.add([1], n=2)
    with pytest.raises(CapacityError, match=r"queue is full.*max_queue_size is 3"):
        harness.scheduler.validate(make_request([1], n=2))
    harness.scheduler.validate(make_request([1]))


def test_nothing_refused_has_left_a_trace():
    harness = Harness(max_input_len=4)
    with pytest.raises(RequestError):
        harness.add([1] * 5)
    assert not harness.scheduler.has_work()
    harness.scheduler.validate(Request([1] * 4, sampling_params=SamplingParams(max_tokens=None)))
