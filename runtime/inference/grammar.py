"""Constraints on output as plain data, and the grammars that they stand for. Imports no torch.

A constraint travels to every rank with its request: `{"kind": "json_schema", "schema": {...}}`,
`{"kind": "json_object"}`, `{"kind": "regex", "pattern": ...}`, `{"kind": "choice", "texts":
[...]}`.
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from parctl.errors import UsageError

BYTE_VALUES = 256
ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def grammar_of(constraint: Mapping[str, object]) -> str:
    """Return the grammar in llguidance's own notation. UsageError: it cannot be one."""
    _need_llguidance()
    from llguidance import LLMatcher

    kind = constraint["kind"]
    try:
        if kind == "regex":
            return str(LLMatcher.grammar_from_regex(str(constraint["pattern"])))
        if kind == "choice":
            texts = constraint["texts"]
            assert isinstance(texts, (list, tuple))
            rule = " | ".join(json.dumps(str(text)) for text in texts)
            return str(LLMatcher.grammar_from_lark(f"start: {rule}"))
        schema = constraint["schema"] if kind == "json_schema" else ANY_OBJECT
        # with blanks wherever JSON allows them, models of no skill write blanks for ever
        return str(
            LLMatcher.grammar_from_json_schema(
                json.dumps(schema), defaults={"whitespace_flexible": False}
            )
        )
    except ValueError as error:
        raise UsageError(f"the constraint cannot be compiled: {error}") from error


@cache
def vocabulary(tokenizer: str, stop_tokens: tuple[int, ...]) -> Any:
    """Return the tokens that grammars are held over; takes seconds for a large tokenizer.

    UsageError: llguidance does not know how this kind of tokenizer writes text.
    """
    _need_llguidance()
    from llguidance import LLTokenizer, TokenizerWrapper

    if tokenizer == "byte":
        return LLTokenizer(TokenizerWrapper(ByteVocabulary(stop_tokens)))
    try:
        with open(tokenizer, encoding="utf-8") as file:
            return LLTokenizer(file.read(), eos_token=list(stop_tokens) or None)
    except ValueError as error:
        raise UsageError(f"output of {tokenizer} cannot be held to a form: {error}") from error


def compile_constraint(
    constraint: Mapping[str, object], tokenizer: str, stop_tokens: tuple[int, ...]
) -> Any:
    """Return llguidance's matcher. Raises UsageError for what cannot be held to."""
    grammar = grammar_of(constraint)
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary(tokenizer, stop_tokens), grammar)
    if matcher.is_error():
        raise UsageError(f"the constraint cannot be compiled: {matcher.get_error()}")
    return matcher


class ByteVocabulary:
    """The byte tokenizer, as llguidance wants to see one."""

    def __init__(self, stop_tokens: tuple[int, ...]) -> None:
        self.eos_token_id = stop_tokens[0] if stop_tokens else 0
        self.bos_token_id = None
        self.tokens = [bytes([value]) for value in range(BYTE_VALUES)]
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _need_llguidance() -> None:
    if find_spec("llguidance") is None:
        raise UsageError(
            "output of a given form needs the package llguidance, which is not installed",
            hint="`pip install 'parctl[serve]'`",
        )
