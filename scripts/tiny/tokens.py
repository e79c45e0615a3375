"""Tokenizer and token arrays: what the training loop reads.

Byte-level BPE whose pieces never cross the end of a line of code: a newline goes with the indentation after it, so a
prompt that stops at `):` is cut exactly where training text is cut. The chat frame is three special tokens round a
user message, and `<|endoftext|>` begins every document.
"""

from __future__ import annotations

import ast
import random
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 6144
END_OF_TEXT, PAD, USER, ASSISTANT, SYSTEM, END = SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|pad|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
)
BOS_ID, PAD_ID, USER_ID, ASSISTANT_ID, SYSTEM_ID, END_ID = range(len(SPECIAL_TOKENS))

PIECES = r"[ _.]?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

MIN_SNIPPET_CHARS, MAX_SNIPPET_CHARS = 80, 6000
INSTRUCTIONS = (
    "Write a Python function `{name}`: {summary}",
    "Write a function {name}. {summary}",
    "{summary} Name the function {name}.",
    "# {summary}\n",
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016 over bytes) that puts `<|endoftext|>` before every encoded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, BOS_ID)],
    )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts one after another, each begun by `<|endoftext|>`, and one at the very end: uint16 [num_tokens]."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return np.fromiter((token for row in [*rows, [BOS_ID]] for token in row), dtype=np.uint16)


def encode_framed(tokenizer: Tokenizer, texts: list[str], *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Snippets cut in two, as chats and as plain continuations, in random order.

    Both halves are encoded apart, as a served prompt and its completion are. Returns the tokens (uint16 [num_tokens])
    and the position at which each sample begins (uint32 [num_samples]).
    """
    rng = random.Random(seed)
    samples = [sample for text in texts for sample in _framed_samples(text, rng)]
    rng.shuffle(samples)
    heads = tokenizer.encode_batch([head for _, head, _ in samples], add_special_tokens=False)
    tails = tokenizer.encode_batch([tail for _, _, tail in samples], add_special_tokens=False)
    tokens: list[int] = []
    starts: list[int] = []
    for (is_chat, _, _), head, tail in zip(samples, heads, tails, strict=True):
        starts.append(len(tokens))
        if is_chat:
            tokens += [BOS_ID, USER_ID, *head.ids, END_ID, ASSISTANT_ID, *tail.ids, END_ID]
        else:
            tokens += [BOS_ID, *head.ids, *tail.ids]
    return np.asarray(tokens, dtype=np.uint16), np.asarray(starts, dtype=np.uint32)


def _framed_samples(text: str, rng: random.Random) -> Iterator[tuple[bool, str, str]]:
    """(is it a chat, first part, the rest) for each function and class of a file that is neither tiny nor huge."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        snippet = textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).strip("\n") + "\n"
        if not MIN_SNIPPET_CHARS <= len(snippet) <= MAX_SNIPPET_CHARS:
            continue
        summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").strip()
        if summary and not isinstance(node, ast.ClassDef) and len(summary) < 300:
            instruction = rng.choice(INSTRUCTIONS).format(name=node.name, summary=summary)
            yield True, instruction, snippet
        cut = _cut(snippet, rng)
        yield rng.random() < 0.75, snippet[:cut], snippet[cut:]


def _cut(snippet: str, rng: random.Random) -> int:
    """Where a prompt would end: mostly before a newline, at times after one or inside a line."""
    ends = [i for i, char in enumerate(snippet[:-1]) if char == "\n" and i > 5]
    if not ends or rng.random() < 0.15:
        return rng.randrange(6, len(snippet) - 1)
    # The first two line ends are the signature and the docstring's first line: what people most often send.
    end = rng.choice(ends[:2]) if rng.random() < 0.4 else rng.choice(ends)
    return end + 1 if rng.random() < 0.2 else end
