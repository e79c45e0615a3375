"""A model's tokenizer: text to token ids and back, chat template included. No torch, no transformers.

Reads what Hugging Face writes beside a model: tokenizer.json, tokenizer_config.json, special_tokens_map.json,
generation_config.json and chat_template.jinja. Only tokenizer.json must be there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from pelton.errors import CheckpointError, RequestError
from pelton.tokenizer.pieces import Pieces
from pelton.tokenizer.template import ChatTemplate
from pelton.types import SamplingParams

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_PROBE_CHARS = 16  # per token, more than common text has
_PROBE_MARGIN = 64  # tokens by which a cut may change the count


class Tokenizer:
    """Encodes, decodes and renders conversations. Make it with `Tokenizer.from_dir`.

    Attributes:
        vocab_size: ids the tokenizer knows; a model's embedding may have more rows.
        special_tokens: name -> text, such as {"bos_token": "<s>"}.
        special_ids: ids that `skip_special_tokens` leaves out of text.
        bos_id: id of the beginning-of-sequence token, or None.
        eos_ids: ids that end a generation: the generation config's and the tokenizer's own.
        pieces: token id -> the bytes it adds to a text.
    """

    def __init__(self, backend: Backend, *, config: dict[str, Any] | None = None,
                 generation_config: dict[str, Any] | None = None, template: str | None = None):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._template_source = template
        config = config or {}
        self.special_tokens = {name: text for name in _SPECIAL_NAMES if (text := _token_text(config.get(name)))}
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._id_of("bos_token")
        self.eos_ids = self._find_eos_ids(generation_config or {})
        decoder = backend.decoder
        self.pieces = Pieces(None if decoder is None else json.loads(decoder.__getstate__()), backend.id_to_token)

    @classmethod
    def from_dir(cls, path: str | Path, *, chat_template: str | Path | None = None) -> Tokenizer:
        """Reads the tokenizer of a checkpoint or of an engine's tokenizer/ directory.

        Args:
            chat_template: a jinja file that takes the place of the model's own template.

        Raises:
            CheckpointError: tokenizer.json is missing or unreadable, its decoder unknown, or a template is invalid.
        """
        folder = Path(path)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise CheckpointError(_missing(folder))
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{file}: not a tokenizer that the tokenizers library can read: {error}") from None
        config = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
        template = _read_text(Path(chat_template)) if chat_template else _find_template(folder, config)
        tokenizer = cls(backend, config=config, generation_config=_read_json(folder / "generation_config.json"),
                        template=template)
        if template is not None:
            _ = tokenizer.chat_template  # an invalid one is refused now, not at the first request
        return tokenizer

    def encode(self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None) -> list[int]:
        """Token ids of a text, with the special tokens (bos) the tokenizer puts around a plain text unless told not to.

        In a conversation the chat template has put them already: encode its text with add_special_tokens=False.

        Args:
            max_tokens: of a text that is clearly longer only a beginning is encoded, itself longer than this, so that
                a hostile text costs no more than an honest one.
        """
        end = len(text)
        if max_tokens is not None:
            end = _PROBE_CHARS * (max_tokens + _PROBE_MARGIN)
            while end < len(text):
                ids = self._encode(text[:end], add_special_tokens)
                if len(ids) > max_tokens + _PROBE_MARGIN:
                    return ids
                end *= 4
        return self._encode(text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # The batch call releases the interpreter lock and computes no offsets; the plain one does neither.
        try:
            return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError:
            raise RequestError("the text is no Unicode text: it holds lone surrogates, as bytes that are not UTF-8 "
                               "become", param="prompt") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD, unknown ids nothing."""
        from pelton.tokenizer.detokenizer import IncrementalDetokenizer

        detokenizer = IncrementalDetokenizer(self, (), SamplingParams(skip_special_tokens=skip_special_tokens))
        return detokenizer.push(ids)[0] + detokenizer.flush()

    def encode_bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences of each word, at the beginning of a text and after a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            for text in (word, " " + word.lstrip()):
                ids = tuple(self.encode(text, add_special_tokens=False))
                if ids:
                    found[ids] = None
        return tuple(found)

    @property
    def has_chat_template(self) -> bool:
        return self._template_source is not None

    @functools.cached_property
    def chat_template(self) -> ChatTemplate:
        """The compiled template.

        Raises:
            RequestError: the model has none. CheckpointError: it is invalid.
        """
        if self._template_source is None:
            raise RequestError("this model has no chat template: use /v1/completions, or name a jinja file with "
                               "--chat-template", param="messages")
        return ChatTemplate(self._template_source, self.special_tokens)

    def apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True,
                            **kwargs: Any) -> str:
        """The prompt text of a conversation, special tokens included.

        Raises:
            RequestError: there is no template, or it refuses the messages.
        """
        return self.chat_template.render(messages, kwargs, add_generation_prompt=add_generation_prompt)

    def encode_chat(self, messages: list[dict[str, Any]], variables: Mapping[str, Any] | None = None, *,
                    add_generation_prompt: bool = True, add_special_tokens: bool = False,
                    max_tokens: int | None = None) -> list[int]:
        """Token ids of a conversation. With add_special_tokens, bos comes once even if the template wrote it.

        Args:
            variables: what else the template may know.
            max_tokens: as in `encode`.
        """
        text = self.chat_template.render(messages, variables, add_generation_prompt=add_generation_prompt)
        bos = self.special_tokens.get("bos_token")
        add_special_tokens = add_special_tokens and not (bos and text.startswith(bos))
        return self.encode(text, add_special_tokens, max_tokens=max_tokens)

    def _id_of(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _find_eos_ids(self, generation_config: dict[str, Any]) -> tuple[int, ...]:
        declared = generation_config.get("eos_token_id")
        ids = declared if isinstance(declared, list) else [declared]
        return tuple(dict.fromkeys(i for i in [*ids, self._id_of("eos_token")] if i is not None))


def _token_text(value: Any) -> str | None:
    """A special token as configs write it: a string, or an object with its content."""
    return value.get("content") if isinstance(value, dict) else value


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such directory"
    if (folder / "tokenizer.model").is_file():
        return (f"{folder}: has tokenizer.model but no tokenizer.json; convert it once with "
                "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)")
    return f"{folder}: no tokenizer.json; copy the model's tokenizer files there"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    return data


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file}: cannot be read as a chat template: {reason}") from None


def _find_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The model's own template: a file, or the config's entry, which may be a list of named ones ("default" counts)."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read_text(file)
    declared = config.get("chat_template")
    if isinstance(declared, list):
        named = {entry["name"]: entry["template"] for entry in declared}
        return named.get("default") or next(iter(named.values()), None)
    if isinstance(declared, str):
        return declared
    legacy = _read_json(folder / "chat_template.json").get("chat_template")
    return legacy if isinstance(legacy, str) else None
