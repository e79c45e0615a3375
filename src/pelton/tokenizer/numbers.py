"""A tokenizer for models that come without one: a token's text is its number. For weights that are made up."""

from __future__ import annotations

from pelton.errors import RequestError
from pelton.tokenizer.pieces import Pieces
from pelton.tokenizer.tokenizer import Tokenizer

_MAX_DIGITS = 9


class NumberTokenizer(Tokenizer):
    """Token 17 reads " 17", and the text "17 4" is the tokens 17 and 4. There are no special tokens and no template.

    It knows every number below `vocab_size`; how many of them the model takes is the engine's to say.
    """

    def __init__(self) -> None:
        self._template_source = None
        self.special_tokens = {}
        self.special_ids = frozenset()
        self.vocab_size = 10**_MAX_DIGITS
        self.bos_id = None
        self.eos_ids = ()
        self.pieces = Pieces(None, str)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        words = text.split()
        if not all(word.isascii() and word.isdecimal() and len(word) <= _MAX_DIGITS for word in words):
            raise RequestError("this server has no tokenizer: give prompts as lists of token ids", param="prompt")
        return [int(word) for word in words]
