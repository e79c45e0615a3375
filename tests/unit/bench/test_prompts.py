from importlib.resources import files
from pathlib import Path

import pytest
from helpers.tokenizers import FAMILIES

from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.vocabulary import Vocabulary, make_vocabulary
from pelton.errors import ConfigError
from pelton.tokenizer.tokenizer import Tokenizer

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))


def family(name):
    return Tokenizer(FAMILIES[name](), config={"bos_token": "<s>"}, template=(
        "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"))


def vocabulary(tokenizer, endpoint, *, token_ids=False):
    return make_vocabulary(tokenizer, is_chat=endpoint == "chat", token_ids=token_ids)


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.from_dir(TINY)


@pytest.mark.parametrize("name", ["tiny", *FAMILIES])
def test_a_tokens_text_is_what_the_tokenizer_makes_of_it(tiny, name):
    tokenizer = tiny if name == "tiny" else family(name)
    token_text = vocabulary(tokenizer, "completions").token_text
    ids = range(tokenizer.vocab_size + 2)
    assert [token_text(i).strip() for i in ids] == [tokenizer.decode([i]).strip() for i in ids]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("size", [16, 64, 257, 900])
def test_prompts_of_the_shipped_tokenizer_are_exact(tiny, endpoint, size):
    factory = PromptFactory(vocabulary(tiny, endpoint), seed=1)
    for _ in range(5):
        prompt = factory.make(size)
        if endpoint == "chat":
            ids = tiny.encode_chat([{"role": "user", "content": prompt.text}])
        else:
            ids = tiny.encode(prompt.text)
        assert len(ids) == size == prompt.num_tokens


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_tokenizer_family_is_exact_down_to_the_floor(name, endpoint):
    words = vocabulary(family(name), endpoint)
    factory = PromptFactory(words, seed=3)
    for size in (factory.floor, factory.floor + 1, factory.floor + 7, 60):
        prompt = factory.make(size)
        assert len(words.encode(prompt.text)) == size
        assert prompt.text.strip()


def test_first_content_tokens_never_repeat(tiny):
    words = vocabulary(tiny, "chat")
    factory = PromptFactory(words, seed=5)
    firsts = [words.encode(factory.make(40).text)[factory.frame[0]] for _ in range(300)]
    assert len(set(firsts)) == 300
    assert factory.first_tokens_unique


def test_pairs_differ_once_the_vocabulary_is_used_up():
    words = vocabulary(family("byte_level"), "completions")
    factory = PromptFactory(words, seed=5)
    prompts = [factory.make(20) for _ in range(120)]
    before = factory.frame[0]
    pairs = {tuple(words.encode(p.text)[before : before + 2]) for p in prompts}
    assert len(pairs) == 120
    assert not factory.first_tokens_unique


def test_a_trials_prompts_begin_unlike_when_the_runs_cannot():
    """The vocabulary is used up in the middle of a trial; only one larger than it repeats a first token."""
    words = vocabulary(family("byte_level"), "completions")
    factory = PromptFactory(words, seed=5)
    before = factory.frame[0]
    num_words = len({factory.words.first_id(word) for word in factory.words.words})
    for count in (num_words // 2 + 3, num_words // 2 + 3, num_words - 2):
        factory.words.begin_trial()
        firsts = [words.encode(factory.make(20).text)[before] for _ in range(count)]
        assert len(set(firsts)) == count
    assert not factory.first_tokens_unique
    assert factory.trial_first_tokens_unique
    factory.words.begin_trial()
    for _ in range(2 * num_words):
        factory.make(20)
    assert not factory.trial_first_tokens_unique


def test_equal_seeds_make_equal_prompts(tiny):
    words = vocabulary(tiny, "chat")
    one, two, other = (PromptFactory(words, seed=s) for s in (7, 7, 8))
    texts = [factory.make(50).text for factory in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]


def test_words_vary_within_a_prompt(tiny):
    words = PromptFactory(vocabulary(tiny, "chat"), seed=2).make(300).text.split()
    assert len(set(words)) > 200


def test_size_below_the_template_is_refused_with_the_floor(tiny):
    factory = PromptFactory(vocabulary(tiny, "chat"), seed=1)
    with pytest.raises(ConfigError, match=rf"below the floor of {factory.floor}: the chat template alone takes "
                                          rf"{factory.template_tokens} tokens"):
        factory.make(factory.floor - 1)


@pytest.mark.parametrize(("added", "shown"), [(0, "0 tokens"), (1, "1 token")])
def test_size_below_the_floor_of_plain_prompts_blames_no_template(tiny, added, shown):
    factory = PromptFactory(vocabulary(tiny, "completions"), seed=1, correction=added - sum(
        PromptFactory(vocabulary(tiny, "completions"), seed=1).frame))
    with pytest.raises(ConfigError, match=f"adds to every prompt, such as BOS, alone takes {shown};"):
        factory.make(added)


def test_correction_moves_sizes_and_floor(tiny):
    words = vocabulary(tiny, "chat")
    factory = PromptFactory(words, seed=1)
    floor = factory.floor
    factory.correction = 5
    assert factory.floor == floor + 5
    assert len(words.encode(factory.make(40).text)) == 35


def test_token_ids_are_exact_and_in_range(tiny):
    factory = PromptFactory(vocabulary(tiny, "completions", token_ids=True), seed=1, token_ids=True)
    prompts = [factory.make(size).token_ids for size in (1, 3, 128)]
    assert [len(p) for p in prompts] == [1, 3, 128]
    assert len({p[0] for p in prompts}) == 3
    assert all(0 <= i < tiny.vocab_size for p in prompts for i in p)


def test_a_tokenizer_that_cannot_make_the_size_says_so():
    # Every text is an even number of tokens, so odd sizes do not exist.
    words = Vocabulary(encode=lambda text: [ord(c) for c in text for _ in "ab"],
                       encode_plain=lambda text: list(text.encode()),
                       token_text=lambda i: f"word{chr(97 + i % 26)}", size=26)
    with pytest.raises(ConfigError, match="no prompt of exactly this size"):
        PromptFactory(words, seed=1).make(41)
