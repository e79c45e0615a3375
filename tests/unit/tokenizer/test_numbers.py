"""The stand-in for models without a tokenizer."""

import pytest

from pelton.errors import RequestError
from pelton.tokenizer.detokenizer import IncrementalDetokenizer
from pelton.tokenizer.numbers import NumberTokenizer


def test_text_and_tokens_are_each_others_inverse():
    ids = [0, 17, 4, 151_935]
    assert NumberTokenizer().encode("0 17 4 151935") == ids
    assert NumberTokenizer().encode(NumberTokenizer().decode(ids)) == ids


def test_tokens_that_come_one_by_one_are_kept_apart():
    detokenizer = IncrementalDetokenizer(NumberTokenizer(), [3])
    assert [detokenizer.push([token])[0] for token in (1, 22, 333)] == [" 1", " 22", " 333"]


@pytest.mark.parametrize("text", ["hello", "1 two", "-1", "1.5", "12345678901", "\u0664"])
def test_other_text_is_refused(text):
    with pytest.raises(RequestError, match="no tokenizer") as caught:
        NumberTokenizer().encode(text)
    assert caught.value.param == "prompt"


def test_has_no_chat_template():
    with pytest.raises(RequestError, match="no chat template"):
        NumberTokenizer().encode_chat([{"role": "user", "content": "1"}])
