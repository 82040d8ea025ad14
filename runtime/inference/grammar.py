"""Constraints on output as plain data, and the grammars that they stand for. Imports no torch.

A constraint travels to every rank with its request: `{"kind": "json_schema", "schema": {...}}`,
`{"kind": "json_object"}`, `{"kind": "regex", "pattern": ...}`, `{"kind": "choice", "texts":
[...]}`.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec

from parctl.errors import UsageError

ANY_OBJECT: Mapping[str, object] = {"type": "object"}
WORDED = {"whitespace_flexible": False}  # models of no skill would write blanks for ever


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
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=WORDED))
    except ValueError as error:
        raise UsageError(f"the constraint cannot be compiled: {error}") from error


def refuse_bad_constraint(constraint: Mapping[str, object]) -> None:
    """Raise UsageError for what no vocabulary could be held to."""
    grammar = grammar_of(constraint)
    from llguidance import LLMatcher

    wrong = LLMatcher.validate_grammar(grammar)
    if wrong:
        raise UsageError(f"the constraint cannot be compiled: {wrong}")


def _need_llguidance() -> None:
    if find_spec("llguidance") is None:
        raise UsageError(
            "output of a given form needs the package llguidance, which is not installed",
            hint="`pip install 'parctl[serve]'`",
        )
