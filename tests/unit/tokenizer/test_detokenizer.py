"""Incremental detokenization against the decoding of the whole, for random texts, ids and cuts."""

import functools
import itertools

import pytest
from helpers.tokenizers import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from pelton.tokenizer.completion import CompletionText
from pelton.tokenizer.detokenizer import IncrementalDetokenizer
from pelton.tokenizer.tokenizer import Tokenizer
from pelton.types import Output, SamplingParams

CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}
BYTES_EXACT = ("byte_level", "metaspace")  # random ids of these decode exactly as the tokenizers library does


@functools.cache
def backend(family):
    return FAMILIES[family]()


@functools.cache
def tokenizer(family):
    return Tokenizer(backend(family), config=CONFIG)


texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" ▁<>0x41the fox你😀é\ufffd")), max_size=40)
families = st.sampled_from(sorted(FAMILIES))
few_texts = st.text("a 你", min_size=4, max_size=24)  # so few characters that stop strings do occur
few_stops = st.lists(st.text("a 你", min_size=1, max_size=4), min_size=1, max_size=4)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=8)


def random_ids(family):
    return st.lists(st.integers(-1, tokenizer(family).vocab_size + 3), max_size=40)


def chunks(ids, sizes):
    ids, sizes = list(ids), itertools.cycle(sizes)
    while ids:
        size = next(sizes)
        yield ids[:size]
        ids = ids[size:]


def deltas(family, ids, sizes, *, prompt=(), **params):
    detokenizer = IncrementalDetokenizer(tokenizer(family), prompt, SamplingParams(**params))
    out = []
    for chunk in chunks(ids, sizes):
        text, match = detokenizer.push(chunk)
        out.append(text)
        if match is not None:
            return out, match
    return [*out, detokenizer.flush()], None


@settings(deadline=None)
@given(families, texts, cuts, st.booleans())
def test_deltas_of_a_text_join_to_it(family, text, sizes, skip):
    ids = tokenizer(family).encode(text, add_special_tokens=False)
    whole = backend(family).decode(ids, skip_special_tokens=skip)
    assert tokenizer(family).decode(ids, skip_special_tokens=skip) == whole
    assert "".join(deltas(family, ids, sizes, skip_special_tokens=skip)[0]) == whole


@settings(deadline=None)
@given(families, cuts, st.booleans(), st.data())
def test_deltas_of_random_ids_join_to_the_whole(family, sizes, skip, data):
    ids = data.draw(random_ids(family))
    whole = tokenizer(family).decode(ids, skip_special_tokens=skip)
    assert "".join(deltas(family, ids, sizes, skip_special_tokens=skip)[0]) == whole
    if family in BYTES_EXACT:
        known = [i for i in ids if i >= 0]
        assert whole == backend(family).decode(known, skip_special_tokens=skip)


@settings(deadline=None)
@given(families, texts, texts, cuts)
def test_output_continues_the_prompt(family, prompt, text, sizes):
    prompt_ids = tokenizer(family).encode(prompt)
    ids = tokenizer(family).encode(text, add_special_tokens=False)
    joined = "".join(deltas(family, ids, sizes, prompt=prompt_ids)[0])
    assert tokenizer(family).decode(prompt_ids) + joined == tokenizer(family).decode(prompt_ids + ids)


@settings(deadline=None)
@given(families, texts, cuts)
def test_no_delta_holds_half_a_character(family, text, sizes):
    text = text.replace("\ufffd", "")
    ids = tokenizer(family).encode(text, add_special_tokens=False)
    assert not any("\ufffd" in delta for delta in deltas(family, ids, sizes)[0])


def brute_force_stop(family, ids, stops, min_tokens):
    """(start, end, stop, num_tokens) by looking at the whole text after every token."""
    known = [0]
    detokenizer = IncrementalDetokenizer(tokenizer(family))
    text = ""
    for token in ids:
        text += detokenizer.push([token])[0]
        known.append(len(text))
    for end in range(1, len(text) + 1):
        num_tokens = next(i for i, length in enumerate(known) if length >= end)
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found and num_tokens >= min_tokens:
            stop = max(found, key=len)
            return text[:end - len(stop)], text[:end], stop, num_tokens
    return None


@settings(deadline=None, max_examples=300)
@given(families, few_texts, few_stops, cuts, st.integers(0, 6), st.booleans())
def test_stop_strings_are_found_however_the_text_is_cut(family, text, stops, sizes, min_tokens, include):
    ids = tokenizer(family).encode(text, add_special_tokens=False)
    params = {"stop": tuple(stops), "min_tokens": min_tokens, "include_stop_str_in_output": include}
    out, match = deltas(family, ids, sizes, **params)
    expected = brute_force_stop(family, ids, stops, min_tokens)
    if expected is None:
        assert match is None
        assert "".join(out) == tokenizer(family).decode(ids)
    else:
        before, through, stop, num_tokens = expected
        assert "".join(out) == (through if include else before)
        assert match == (stop, num_tokens)


@settings(deadline=None)
@given(families, st.text("abc", max_size=30), cuts)
def test_text_that_may_begin_a_stop_string_is_held_back(family, text, sizes):
    ids = tokenizer(family).encode(text, add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer(family), (), SamplingParams(stop=("abcabd", "cab!")))
    sent = ""
    for chunk in chunks(ids, sizes):
        sent += detokenizer.push(chunk)[0]
        held = max(k for stop in ("abcabd", "cab!") for k in range(len(stop))
                   if tokenizer(family).decode(ids[:detokenizer.num_tokens]).endswith(stop[:k]))
        assert len(sent) == len(tokenizer(family).decode(ids[:detokenizer.num_tokens])) - held


def test_every_token_is_looked_at_once():
    counted = Tokenizer(backend("byte_level"), config=CONFIG)
    lookups = []
    pieces = counted.pieces

    class Counting(type(pieces)):
        def __getitem__(self, token_id):
            lookups.append(token_id)
            return super().__getitem__(token_id)

    counted.pieces = Counting(None, backend("byte_level").id_to_token)
    # A run of bytes that never becomes a character: an approach that decodes again until it does is quadratic here.
    detokenizer = IncrementalDetokenizer(counted, [5])
    lookups.clear()
    ids = [counted.encode("€", add_special_tokens=False)[0]] * 2000
    for token in ids:
        detokenizer.push([token])
    assert len(lookups) == len(ids)


def test_a_character_begun_in_the_prompt_is_completed():
    ids = tokenizer("byte_level").encode("😃", add_special_tokens=False)
    assert len(ids) > 1
    assert "".join(deltas("byte_level", ids[1:], [1], prompt=ids[:1])[0]) == "😃"


def test_a_leading_space_is_kept_after_a_prompt_and_dropped_at_the_start():
    ids = tokenizer("byte_fallback").encode("fox", add_special_tokens=False)
    assert "".join(deltas("byte_fallback", ids, [1])[0]) == "fox"
    assert "".join(deltas("byte_fallback", ids, [1], prompt=tokenizer("byte_fallback").encode("the"))[0]) == " fox"


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character():
    ids = tokenizer("byte_level").encode("a😃", add_special_tokens=False)
    out, _ = deltas("byte_level", ids[:-1], [1])
    assert out[-1] == "\ufffd"
    assert "".join(out) == "a\ufffd"


def completion(ids, *, output=None, **params):
    text = CompletionText(tokenizer("byte_level"), [5], SamplingParams(**params))
    return text, text.push(output or Output("r", 0, ids))


def test_completion_ended_by_a_token_leaves_it_out_of_the_text():
    ids = tokenizer("byte_level").encode("fox", add_special_tokens=False)
    stop = tokenizer("byte_level").encode("!", add_special_tokens=False)
    output = Output("r", 0, ids + stop, finish_reason="stop", stop_reason=stop[0])
    text, news = completion(ids, output=output)
    assert (news.text, news.finish_reason, news.stop_reason, text.num_tokens) == ("fox", "stop", stop[0], len(ids) + 1)
    assert not news.is_early_stop
    assert completion(ids, output=output, include_stop_str_in_output=True)[1].text == "fox!"


def test_completion_ended_by_a_stop_string_drops_later_tokens():
    ids = tokenizer("byte_level").encode("fox dog", add_special_tokens=False)
    text, news = completion(ids, stop=("x",))
    assert (news.text, news.finish_reason, news.stop_reason) == ("fo", "stop", "x")
    assert news.is_early_stop
    assert len(news.token_ids) == text.num_tokens < len(ids)


def test_completion_at_its_length_gives_out_held_text():
    ids = tokenizer("byte_level").encode("fo", add_special_tokens=False)
    _, news = completion(ids, output=Output("r", 0, ids, finish_reason="length"), stop=("fox",))
    assert (news.text, news.finish_reason) == ("fo", "length")


def test_completion_without_detokenizing_counts_tokens():
    text, news = completion([7, 8, 9], detokenize=False)
    assert (news.text, text.num_tokens) == ("", 3)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_special_tokens_are_shown_on_request(family):
    end = backend(family).token_to_id("<|end|>")
    assert tokenizer(family).decode([end]) == ""
    assert tokenizer(family).decode([end], skip_special_tokens=False) == "<|end|>"
