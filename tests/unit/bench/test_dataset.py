import json

import pytest

from pelton.bench.prompts.dataset import read_data_set
from pelton.errors import ConfigError

SHARE = {"id": "a", "conversations": [
    {"from": "gpt", "value": "of something before"}, {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "One?"}, {"from": "gpt", "value": "1."}, {"from": "human", "value": "Two?"},
    {"from": "gpt", "value": "2."}]}
BATCH = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {
    "model": "x", "max_tokens": 9, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}}


def user(text):
    return {"role": "user", "content": text}


def read(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return read_data_set(path)


def test_sharegpt_as_list_and_as_lines(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([SHARE, {"conversations": []}]))
    for entries in (read_data_set(tmp_path / "list.json"), read(tmp_path, SHARE, {"conversations": []})):
        (entry,) = entries
        assert entry.messages == [{"role": "system", "content": "Be kind."}, user("One?")]
        assert (entry.answer, entry.output_tokens, entry.turns) == ("1.", None, ("Two?",))


def test_openai_batch_lines(tmp_path):
    completion = {"body": {"prompt": "Once", "max_completion_tokens": 4}}
    chat, plain = read(tmp_path, BATCH, completion)
    assert chat.messages == [{"role": "system", "content": "S"}, user("ab")]
    assert (chat.output_tokens, chat.answer) == (9, None)
    assert (plain.messages, plain.output_tokens) == ([user("Once")], 4)


@pytest.mark.parametrize(("row", "messages", "answer"), [
    ({"prompt": "p", "completion": "c"}, [user("p")], "c"), ({"text_input": "p"}, [user("p")], None),
    ({"prompt": ["p"]}, [user("p")], None),
    ({"messages": [user("a"), {"role": "assistant", "content": "b"}, user("c"), {"role": "assistant", "content": "d"}]},
     [user("a"), {"role": "assistant", "content": "b"}, user("c")], "d")])
def test_plain_lines(tmp_path, row, messages, answer):
    (entry,) = read(tmp_path, row)
    assert (entry.messages, entry.answer) == (messages, answer)


@pytest.mark.parametrize(("text", "problem"), [
    ("", "holds no prompts"), ("{\n", "line 1: not JSON"), ('{"prompt": "a"}\n{"x": 1}\n', "entry 2: no prompt found"),
    ('{"prompt": [1, 2]}', "entry 1: no prompt found"), ("[1]", "not JSON of objects"), ("\xff", "not JSON"),
    ('{"prompt": "a", "max_tokens": 0}', "0 tokens asked for"),
    ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "which is not text"),
    ('{"conversations": [{"from": "gpt", "value": "a"}]}', "holds no prompts")])
def test_what_is_no_data_set_is_refused_with_its_place(tmp_path, text, problem):
    (tmp_path / "bad").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=problem):
        read_data_set(tmp_path / "bad")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_data_set(tmp_path / "missing")
