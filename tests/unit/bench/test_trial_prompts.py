import itertools
import random
from importlib.resources import files
from pathlib import Path

import pytest
from helpers.tokenizers import FAMILIES

from pelton.bench.load.shapes import Size
from pelton.bench.prompts.dataset import Entry
from pelton.bench.prompts.factory import PromptFactory
from pelton.bench.prompts.lengths import Lengths
from pelton.bench.prompts.source import LoadedText, Material
from pelton.bench.prompts.trial import BLOCK_TOKENS, Content, TrialPrompts
from pelton.bench.prompts.vocabulary import make_vocabulary
from pelton.bench.prompts.words import pieces_of
from pelton.bench.results import PromptSpec
from pelton.errors import ConfigError
from pelton.tokenizer.tokenizer import Tokenizer

TINY = Path(str(files("pelton") / "models_data" / "pelton-tiny"))
TEXT = """The mill stood by the river; its wheel had not turned since the flood, and nobody asked why. In spring
the children came with buckets, counted the fish (there were seven), and went home before the rain.

"What is it for?" said the smallest. Nobody knew, so they made something up: it ground the stars to flour."""
ENTRIES = [Entry([{"role": "user", "content": "What is a wheel?"}], "A round thing.", None, ("Why?", "Where?")),
           Entry([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is rain?"}], None, 7),
           Entry([{"role": "user", "content": TEXT}], "So it was.")]
MATERIAL = Material(text=LoadedText(pieces_of(TEXT)), entries=ENTRIES)


@pytest.fixture(scope="module")
def tiny():
    return Tokenizer.from_dir(TINY)


def family(name):
    return Tokenizer(FAMILIES[name](), config={"bos_token": "<s>"}, template=(
        "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"))


def trial(tokenizer, *, endpoint="chat", token_ids=False, seed="s", factory=None, prompt="9", output="9", **spec):
    """(trial's prompts, function that counts a prompt as the server would)."""
    words = make_vocabulary(tokenizer, is_chat=endpoint == "chat", token_ids=token_ids)
    factory = factory or PromptFactory(words, seed=5, token_ids=token_ids)
    content = Content(PromptSpec(**spec), Lengths.parse(prompt), Lengths.parse(output))

    def encode(made):
        if made.token_ids is not None:
            return made.token_ids
        return words.encode(made.text) if endpoint != "chat" else words.encode_messages(made.as_messages)

    return TrialPrompts(factory, MATERIAL, content, seed=seed), encode


@pytest.mark.parametrize("endpoint", ["chat", "completions", "ids"])
@pytest.mark.parametrize("source", ["synthetic", "text", "data", "repeat"])
@pytest.mark.parametrize("name", ["tiny", *sorted(FAMILIES)])
def test_every_source_is_exact_at_fresh_sizes(tiny, name, source, endpoint):
    tokenizer = tiny if name == "tiny" else family(name)
    texts, encode = trial(tokenizer, endpoint="chat" if endpoint == "chat" else "completions",
                          token_ids=endpoint == "ids", source=source)
    for size in random.sample(range(12, 500), 6):
        made = texts.make(size)
        assert len(encode(made)) == size == made.num_tokens
        assert made.prefix_tokens == 0


@pytest.mark.parametrize("source", ["text", "data"])
def test_real_text_stays_what_it_is_but_for_its_first_word_and_its_end(tiny, source):
    texts, _ = trial(tiny, source=source)
    made = texts.make(60, entry=2)
    words = made.text.split()[1:-8]
    assert " ".join(words) in " ".join(TEXT.split() * 2)
    assert len(words) > 15


def test_prompts_of_all_trials_begin_unlike_each_other(tiny):
    factory = PromptFactory(make_vocabulary(tiny, is_chat=True, token_ids=False), seed=5)
    firsts = []
    for number, source in enumerate(("synthetic", "text", "data")):
        texts, encode = trial(tiny, factory=factory, seed=str(number), source=source)
        firsts += [encode(texts.make(50))[factory.frame[0]] for _ in range(40)]
    assert len(set(firsts)) == 120
    assert factory.first_tokens_unique


def test_a_repeated_text_is_the_same_every_time_and_never_below_the_floor(tiny):
    texts, encode = trial(tiny, source="repeat", is_unique=False)
    assert len({texts.make(300).text for _ in range(3)}) == 1
    assert texts.make(300).text.count("nobody asked why") > 1
    floor = texts._factory.floor
    assert {len(encode(texts.make(size))) for size in (1, 2, floor)} == {floor}


@pytest.mark.parametrize("mode", ["chat", "completions", "ids"])
@pytest.mark.parametrize("source", ["synthetic", "text", "data"])
def test_prefixes_are_shared_by_lot_and_nothing_else_is(tiny, source, mode):
    texts, encode = trial(tiny, endpoint="chat" if mode == "chat" else "completions", token_ids=mode == "ids",
                          source=source, shared_prefix_tokens=24, num_prefixes=3)
    before = texts._factory.frame[0]
    prompts = [texts.make(size) for size in (60, 61, 90, 200) * 10]
    contents = [encode(made)[before:] for made in prompts]
    assert {made.prefix_tokens for made in prompts} == {24}
    assert [len(encode(made)) for made in prompts] == [60, 61, 90, 200] * 10
    pools = {tuple(content[:24]) for content in contents}
    assert len(pools) == 3
    assert len({content[24] for content in contents}) == 40
    other, _ = trial(tiny, factory=texts._factory, seed="other", token_ids=mode == "ids", source=source,
                     endpoint="chat" if mode == "chat" else "completions", shared_prefix_tokens=24)
    assert tuple(encode(other.make(60))[before:][:24]) not in pools


def test_no_room_beside_the_prefix_is_refused(tiny):
    texts, _ = trial(tiny, prompt="30", shared_prefix_tokens=28)
    with pytest.raises(ConfigError, match=r"below the floor of 33: the shared prefix takes 28 tokens"):
        texts._content.check(texts._factory, 30)
    Content(PromptSpec(source="repeat"), Lengths.parse("1")).check(texts._factory, 1)


def test_equal_blocks_of_a_trace_are_equal_tokens(tiny):
    texts, encode = trial(tiny)
    one, two, other = (encode(texts.make(size, blocks=blocks)) for size, blocks in (
        (1200, (1, 2, 3)), (1300, (1, 2, 4)), (700, (5, 2))))
    assert [len(ids) for ids in (one, two, other)] == [1200, 1300, 700]
    assert one[: 2 * BLOCK_TOKENS] == two[: 2 * BLOCK_TOKENS]
    assert one[2 * BLOCK_TOKENS] != two[2 * BLOCK_TOKENS]
    assert one[10:40] != other[10:40]


def test_entries_are_sent_as_they_are_but_unlike(tiny):
    texts, encode = trial(tiny, source="data", prompt="data", output="data")
    sizes = list(itertools.islice(texts.sizes(0, 0), 6))
    assert sorted(s.entry for s in sizes[:3]) == sorted(s.entry for s in sizes[3:]) == [0, 1, 2]
    for size in sizes:
        entry = ENTRIES[size.entry]
        assert size.prompt_tokens == 0
        expected = entry.output_tokens or len(tiny.encode(entry.answer, add_special_tokens=False))
        assert size.output_tokens == expected
        made = texts.make(0, entry=size.entry)
        assert made.num_tokens == len(encode(made))
        assert made.as_messages[0]["content"].split(" ", 1)[1] == entry.messages[0]["content"]
        assert made.as_messages[1:] == entry.messages[1:]
    texts, _ = trial(tiny, source="data", prompt="data", is_unique=False)
    assert texts.make(0, entry=1).as_messages == ENTRIES[1].messages
    assert texts.make(0, entry=0).text == "What is a wheel?"


def test_drawn_sizes_repeat_with_the_seed_and_respect_the_floor(tiny):
    def sizes(seed, **spec):
        texts, _ = trial(tiny, seed=seed, prompt="40~15", output="3-6", **spec)
        return list(itertools.islice(texts.sizes(0, 0), 200))

    assert sizes("a") == sizes("a") != sizes("b")
    assert {s.output_tokens for s in sizes("a")} == {3, 4, 5, 6}
    assert min(s.prompt_tokens for s in sizes("a", shared_prefix_tokens=20)) >= 25
    fixed = TrialPrompts(PromptFactory(make_vocabulary(tiny, is_chat=True, token_ids=False), seed=1), Material(),
                         Content(), seed="x")
    assert next(fixed.sizes(16, 4)) == Size(16, 4)


def test_an_entry_without_answer_and_length_says_so(tiny):
    texts = TrialPrompts(PromptFactory(make_vocabulary(tiny, is_chat=True, token_ids=False), seed=1),
                         Material(entries=[Entry([{"role": "user", "content": "a"}])]),
                         Content(PromptSpec(source="data"), Lengths.parse("data"), Lengths.parse("data")), seed="x")
    with pytest.raises(ConfigError, match="entry 1 has neither an answer nor a number of tokens"):
        next(texts.sizes(0, 0))
