"""Output that must be of a form: which tokens may come next, by a grammar over the vocabulary.

`llguidance` follows a sample's output through its grammar and answers which tokens keep it a
beginning of something valid. Once nothing can follow, only the tokens that end a text are left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from parctl.errors import UsageError
from parctl.runtime.inference.grammar import compile_constraint, vocabulary
from parctl.runtime.inference.request import SampleRow


class Matcher(Protocol):
    def allowed(self, output_tokens: Sequence[int], vocab_size: int) -> Tensor:
        """Return which tokens may follow this output, `[vocab_size]` of bool, on the host."""


class Grammars:
    """Compiles constraints for one tokenizer: `byte`, or the path of a tokenizer.json."""

    def __init__(self, tokenizer: str, *, stop_tokens: Sequence[int]) -> None:
        self._tokenizer, self._stop_tokens = tokenizer, tuple(stop_tokens)

    def __call__(self, row: SampleRow) -> Matcher:
        """Compile a row's; what cannot be, which callers look at before, only ends its own text."""
        assert row.sampling.constraint is not None
        try:
            return self.matcher(row.sampling.constraint)
        except UsageError:
            return OnlyEnd(self._stop_tokens)

    def matcher(self, constraint: Mapping[str, object]) -> "GrammarMatcher":
        matcher = compile_constraint(constraint, self._tokenizer, self._stop_tokens)
        num_tokens = vocabulary(self._tokenizer, self._stop_tokens).vocab_size
        return GrammarMatcher(matcher, self._stop_tokens, num_tokens)


class GrammarMatcher:
    """Follows one sample's output."""

    def __init__(self, matcher: Any, stop_tokens: Sequence[int], num_tokens: int) -> None:
        self._matcher, self._stop_tokens = matcher, tuple(stop_tokens)
        self._num_tokens, self._num_consumed = num_tokens, 0

    def allowed(self, output_tokens: Sequence[int], vocab_size: int) -> Tensor:
        new = list(output_tokens[self._num_consumed :])
        self._num_consumed = len(output_tokens)
        if new and not self._matcher.is_stopped():
            self._matcher.consume_tokens(new)
        if self._matcher.is_stopped():
            return OnlyEnd(self._stop_tokens).allowed(output_tokens, vocab_size)
        mask = np.zeros((self._num_tokens + 31) // 32, np.int32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        known = min(self._num_tokens, vocab_size)
        allowed = torch.zeros(vocab_size, dtype=torch.bool)  # padding of the vocabulary never is
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:known]
        allowed[:known] = torch.from_numpy(bits.astype(np.bool_))
        if bool(allowed.any()):
            return allowed
        return OnlyEnd(self._stop_tokens).allowed(output_tokens, vocab_size)


@dataclass(frozen=True, slots=True)
class OnlyEnd:
    """Allows what ends a text; anything, where no token does."""

    _stop_tokens: tuple[int, ...]

    def allowed(self, output_tokens: Sequence[int], vocab_size: int) -> Tensor:
        if not self._stop_tokens:
            return torch.ones(vocab_size, dtype=torch.bool)
        allowed = torch.zeros(vocab_size, dtype=torch.bool)
        allowed[list(self._stop_tokens)] = True
        return allowed
