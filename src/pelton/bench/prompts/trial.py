"""The prompts of one trial of a cell: their sizes, their texts and what they share."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelton.bench.load.shapes import Size
from pelton.bench.prompts.dataset import Entry
from pelton.bench.prompts.factory import Draft, PromptFactory
from pelton.bench.prompts.lengths import Lengths
from pelton.bench.prompts.prompt import Prompt
from pelton.bench.prompts.source import DataSource, Material, RepeatSource, Source, SyntheticSource, TextSource
from pelton.bench.prompts.vocabulary import flatten
from pelton.bench.prompts.words import pieces_of
from pelton.bench.results import SYNTHETIC, PromptSpec
from pelton.errors import ConfigError

BLOCK_TOKENS = 512  # of a trace's blocks


@dataclass(frozen=True)
class Content:
    """What the prompts of a cell are asked to be."""

    spec: PromptSpec = SYNTHETIC
    prompt_lengths: Lengths | None = None
    """None: the cell's one size."""
    output_lengths: Lengths | None = None

    @property
    def key(self) -> str | None:
        """A short name of the sizes for ids; none where they are the cell's own."""
        if self.prompt_lengths is None or self.output_lengths is None:
            return None
        return f"p{self.prompt_lengths}-o{self.output_lengths}"

    @property
    def has_fixed_sizes(self) -> bool:
        return all(lengths is None or lengths.kind == "fixed" for lengths in (self.prompt_lengths, self.output_lengths))

    def check(self, prompts: PromptFactory, prompt_tokens: int) -> None:
        """Refuses sizes that cannot be made; those of a data set are taken as they come.

        Raises:
            ConfigError: the smallest is below the floor.
        """
        lengths = self.prompt_lengths or Lengths("fixed", prompt_tokens)
        if self.spec.source != "repeat" and lengths.kind != "data":
            prompts.check(lengths.low, prefix_tokens=self.spec.shared_prefix_tokens)


AS_SIZED = Content()


class TrialPrompts:
    """Makes a trial's prompts; equal seeds make equal ones."""

    def __init__(self, factory: PromptFactory, material: Material, content: Content, *, seed: str,
                 num_turns: int = 1) -> None:
        """`num_turns` is how many turns an entry of a data set that is sent as it is must have.

        Raises:
            ConfigError: none has.
        """
        self._factory = factory
        factory.words.begin_trial()
        self._content = content
        self._seed = seed
        self._random = random.Random(f"{seed}/prompts")
        self._entries = material.entries or []
        self._usable = range(len(self._entries))
        if content.prompt_lengths is not None and content.prompt_lengths.kind == "data":
            self._usable = [i for i in self._usable if len(self._entries[i].turns) >= num_turns - 1]
            if not self._usable:
                raise ConfigError(f"prompt_data: no conversation has {num_turns} turns of the user; lower "
                                  "session_turns")
        self._source = _make_source(factory, material, content.spec, seed=f"{seed}/text")
        self._prefixes: dict[int, tuple[list[str], Sequence[int]]] = {}
        self._answer_tokens: dict[int, int] = {}

    def sizes(self, prompt_tokens: int, output_tokens: int) -> Iterator[Size]:
        """What the requests ask for, one after another and without end; the numbers where none are drawn."""
        prompts = self._content.prompt_lengths or Lengths("fixed", prompt_tokens)
        outputs = self._content.output_lengths or Lengths("fixed", output_tokens)
        least = self._factory.floor + self._content.spec.shared_prefix_tokens
        drawn_in = prompts.draws(random.Random(f"{self._seed}/prompt_tokens"), least=least)
        drawn_out = outputs.draws(random.Random(f"{self._seed}/output_tokens"))
        entries = self._shuffled_entries()
        while True:
            entry = next(entries)
            num_in = 0 if prompts.kind == "data" else next(drawn_in)
            num_out = self.answer_tokens(entry) if outputs.kind == "data" else next(drawn_out)
            yield Size(num_in, num_out, entry)

    def make(self, num_tokens: int, *, entry: int | None = None, blocks: Sequence[int] = ()) -> Prompt:
        """A prompt of this size; 0 takes the data set's entry as it is.

        Args:
            blocks: names of its blocks of 512 tokens; equal names are equal text, in all prompts of the trial.

        Raises:
            ConfigError: the size is below the floor, or this tokenizer cannot make it exactly.
        """
        if self._source_is_data and entry is None:
            entry = self._random.choice(self._usable)
        if blocks:
            return self._make_of_blocks(num_tokens, blocks)
        if num_tokens == 0:
            return self._take(self._entries[entry])
        more = None
        if self._content.spec.source == "repeat":  # sizes under the floor collapse, as they do in the wild
            num_tokens = max(num_tokens, self._factory.floor)
            more = functools.partial(self._factory.words.fillers, rng=random.Random(num_tokens))
        return self._factory.fit(num_tokens, lambda size: self._draft(size, entry), more=more,
                                 is_unique=self._source.is_unique)

    def make_session(self, num_tokens: int, *, entry: int | None, num_turns: int, turn_tokens: int
                     ) -> tuple[Prompt, list[str]]:
        """A conversation that begins with such a prompt, and what the user says in its later turns: of one of a data
        set its own turns, of any other random words of `turn_tokens` each."""
        factory, first = self._factory, self.make(num_tokens, entry=entry)
        if num_tokens == 0:
            return first, list(self._entries[entry].turns[: num_turns - 1])
        return first, [factory.make(factory.template_tokens + turn_tokens).text for _ in range(num_turns - 1)]

    def answer_tokens(self, entry: int) -> int:
        """Tokens that the data set asks for, or that its own answer has.

        Raises:
            ConfigError: it says neither.
        """
        if entry not in self._answer_tokens:
            found = self._entries[entry]
            if found.output_tokens is None and found.answer is None:
                raise ConfigError(f"prompt_data: entry {entry + 1} has neither an answer nor a number of tokens to "
                                  "generate; give output_tokens as a number")
            count = found.output_tokens or len(self._factory.vocabulary.encode_plain(found.answer))
            self._answer_tokens[entry] = max(count, 1)
        return self._answer_tokens[entry]

    @property
    def _source_is_data(self) -> bool:
        return self._content.spec.source == "data"

    def _shuffled_entries(self) -> Iterator[int | None]:
        rng = random.Random(f"{self._seed}/entries")
        while self._source_is_data:
            yield from rng.sample(self._usable, len(self._usable))
        while True:
            yield None

    def _draft(self, size: int, entry: int | None) -> Draft:
        """The shared prefix, a first word of the prompt's own, and the source's text."""
        prefix, prefix_ids = self._prefix()
        if self._factory.uses_token_ids and self._content.spec.source == "synthetic":
            return self._factory.draft_words(size, prefix_ids)
        first = [self._factory.words.first()] if self._source.is_unique else []
        if prefix_ids and first:
            first = [f" {first[0]}"]
        pieces = [*prefix, *first, *self._source.draft(size - len(prefix_ids) - len(first), entry)]
        return Draft([pieces[0].lstrip(), *pieces[1:]], max(len(prefix) + len(first), 1), prefix_ids)

    def _prefix(self) -> tuple[list[str], Sequence[int]]:
        """(pieces, token ids) of one of the pool's prefixes, by lot."""
        spec = self._content.spec
        if not spec.shared_prefix_tokens:
            return [], ()
        number = self._random.randrange(spec.num_prefixes)
        if number not in self._prefixes:
            factory = self._factory
            made = factory.make(factory.template_tokens + spec.shared_prefix_tokens)
            before, after = factory.frame
            ids = made.token_ids or factory.vocabulary.encode(made.text)
            self._prefixes[number] = pieces_of(made.text), ids[before : len(ids) - after]
        return self._prefixes[number]

    def _make_of_blocks(self, num_tokens: int, blocks: Sequence[int]) -> Prompt:
        """The template's beginning counts as part of the first block, so that equal blocks are equal tokens."""
        before, _ = self._factory.frame
        rng = random.Random(f"{self._seed}/blocks/{'/'.join(map(str, blocks))}")

        def draft(size: int) -> Draft:
            pieces = [piece for block in blocks for piece in self._block(block)]
            pieces = pieces[before:][:size]
            return Draft([pieces[0].lstrip(), *pieces[1:]], 1)

        return self._factory.fit(num_tokens, draft, more=lambda count: self._factory.words.fillers(count, rng),
                                 is_unique=False)

    def _block(self, name: int) -> list[str]:
        return self._factory.words.fillers(BLOCK_TOKENS, random.Random(f"{self._seed}/block/{name}"))

    def _take(self, entry: Entry) -> Prompt:
        """An entry as it is, but for a first word that makes it unlike all others where that is asked for."""
        factory, messages = self._factory, entry.messages
        while self._source.is_unique:
            first = f"{factory.words.first()} {entry.messages[0]['content']}"
            if factory.words.claim(factory.vocabulary.encode_plain(first[:200])):
                messages = [{**entry.messages[0], "content": first}, *entry.messages[1:]]
                break
        text = flatten(messages)
        num_tokens = factory.count_messages(messages) - factory.correction
        is_single = len(messages) == 1 and messages[0]["role"] == "user"
        ids = factory.vocabulary.encode_plain(text) if factory.uses_token_ids else None
        return Prompt(text if ids is None else "", ids, num_tokens, None if is_single or ids else messages)


def _make_source(factory: PromptFactory, material: Material, spec: PromptSpec, *, seed: str) -> Source:
    if spec.source == "data":
        return DataSource(material.entries, is_unique=spec.is_unique)
    if spec.source == "text":
        return TextSource(material.text, factory.vocabulary, is_unique=spec.is_unique, seed=seed)
    if spec.source == "repeat":
        return RepeatSource(material.text, factory.vocabulary)
    return SyntheticSource(factory.words)
