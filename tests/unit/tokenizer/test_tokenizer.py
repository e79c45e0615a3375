import json
import subprocess
import sys

import pytest
from helpers.tokenizers import TEMPLATE, byte_fallback, byte_level, write_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from pelton.errors import CheckpointError, RequestError
from pelton.tokenizer.tokenizer import Tokenizer

USER = [{"role": "user", "content": "fox"}]


def test_reads_a_directory(tmp_path):
    folder = write_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 1]}')
    tokenizer = Tokenizer.from_dir(folder)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (4, 1))
    assert tokenizer.vocab_size == byte_level().get_vocab_size()
    assert tokenizer.special_ids == frozenset(range(5))


def test_special_tokens_may_be_objects_or_stand_in_the_map(tmp_path):
    folder = write_tokenizer(tmp_path, bos_token={"content": "<s>", "lstrip": False}, eos_token=None)
    assert Tokenizer.from_dir(folder).bos_id == 0
    assert Tokenizer.from_dir(folder).eos_ids == ()
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    assert Tokenizer.from_dir(folder).eos_ids == (1,)


def test_bos_comes_with_plain_text_and_once_in_a_conversation(tmp_path):
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path))
    assert tokenizer.encode("fox")[0] == 0
    assert 0 not in tokenizer.encode("fox", add_special_tokens=False)
    for add_special_tokens in (False, True):
        assert tokenizer.encode_chat(USER, add_special_tokens=add_special_tokens).count(0) == 1


def test_bos_is_added_to_a_template_without_it_only_on_request(tmp_path):
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, template=TEMPLATE.replace("{{ bos_token }}", "")))
    assert 0 not in tokenizer.encode_chat(USER)
    assert tokenizer.encode_chat(USER, add_special_tokens=True)[0] == 0


def test_tokenizers_without_a_post_processor_add_nothing(tmp_path):
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, byte_level(add_bos=False)))
    assert tokenizer.encode("fox") == tokenizer.encode("fox", add_special_tokens=False)


def test_stored_truncation_and_padding_do_not_apply(tmp_path):
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, backend))
    assert 4 < len(tokenizer.encode("the quick brown fox")) < 64


@pytest.mark.parametrize("declared", [
    "named",
    [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "named"}],
    [{"name": "only", "template": "named"}],
])
def test_template_in_the_config(tmp_path, declared):
    folder = write_tokenizer(tmp_path, template=None, chat_template=declared)
    assert Tokenizer.from_dir(folder).apply_chat_template(USER) == "named"


def test_template_file_wins_over_the_config_and_an_override_over_both(tmp_path):
    folder = write_tokenizer(tmp_path / "model", template="file", chat_template="config")
    assert Tokenizer.from_dir(folder).apply_chat_template(USER) == "file"
    override = tmp_path / "mine.jinja"
    override.write_text("mine")
    assert Tokenizer.from_dir(folder, chat_template=override).apply_chat_template(USER) == "mine"


def test_without_a_template_a_conversation_is_refused(tmp_path):
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="--chat-template"):
        tokenizer.apply_chat_template(USER)


def test_invalid_template_is_refused_on_loading(tmp_path):
    with pytest.raises(CheckpointError, match="chat template: line 1"):
        Tokenizer.from_dir(write_tokenizer(tmp_path, template="{% if %}"))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        Tokenizer.from_dir(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model but no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    with pytest.raises(CheckpointError, match=r"mine\.jinja"):
        Tokenizer.from_dir(write_tokenizer(tmp_path / "ok"), chat_template=tmp_path / "mine.jinja")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "BPE"'])
def test_damaged_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_config_is_named(tmp_path, content):
    folder = write_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.from_dir(folder)


def test_unknown_decoder_is_refused(tmp_path):
    backend = byte_level()
    backend.decoder = decoders.CTC()
    with pytest.raises(CheckpointError, match="CTC"):
        Tokenizer.from_dir(write_tokenizer(tmp_path, backend))


def test_without_a_decoder_words_are_joined_by_spaces():
    backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    assert Tokenizer(backend).decode([1, 2, 1]) == "a b a" == backend.decode([1, 2, 1])


@pytest.mark.parametrize("family", [byte_level, byte_fallback])
@pytest.mark.parametrize("text", ["the fox " * 500, " " * 4000, "你好" * 2000, "fox"])
def test_a_limit_cuts_only_texts_that_exceed_it(family, text):
    tokenizer = Tokenizer(family())
    whole = tokenizer.encode(text)
    for max_tokens in (0, 5, len(whole) - 1, len(whole), 10**6):
        ids = tokenizer.encode(text, max_tokens=max_tokens)
        assert ids == whole if max_tokens >= len(whole) else len(ids) > max_tokens


def test_a_huge_text_is_not_encoded_whole():
    assert len(Tokenizer(byte_level()).encode("fox " * 2**20, max_tokens=10)) < 2000


def test_bad_words_are_encoded_with_and_without_a_space():
    tokenizer = Tokenizer(byte_level())
    assert set(tokenizer.encode_bad_words(["fox"])) == {
        tuple(tokenizer.encode("fox", add_special_tokens=False)),
        tuple(tokenizer.encode(" fox", add_special_tokens=False))}
    assert len(Tokenizer(byte_fallback()).encode_bad_words(["fox", "fox"])) == 2


def test_agrees_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    for family in (byte_level, byte_fallback):
        folder = write_tokenizer(tmp_path / family.__name__, family())
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        saved = tmp_path / f"{family.__name__}-saved"
        theirs.save_pretrained(saved)
        for ours in (Tokenizer.from_dir(folder), Tokenizer.from_dir(saved)):
            text = "def fibonacci(n): # Größe 你好 😀 <|end|>  x"
            assert ours.encode(text) == theirs.encode(text)
            assert ours.eos_ids == (theirs.eos_token_id,)
            for skip in (True, False):
                ids = ours.encode(text)
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
            messages = [*USER, {"role": "assistant", "content": "<&>"}, *USER]
            assert ours.encode_chat(messages) == theirs.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False)


def test_needs_no_torch_and_no_transformers(tmp_path):
    folder = write_tokenizer(tmp_path)
    code = f"""import sys
from pelton.tokenizer.tokenizer import Tokenizer
Tokenizer.from_dir({json.dumps(str(folder))}).encode_chat([{{'role': 'user', 'content': 'x'}}])
print([m for m in ('torch', 'transformers') if m in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
