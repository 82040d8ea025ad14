"""Which replica a prompt goes to: where its beginning is in the prefix cache, unless that is busy.

The front does not see the caches; it remembers what it sent where. A prompt is known by the digests
of its leading blocks, each over all tokens up to its end, so the longest remembered one says how
much a replica has probably kept.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

BLOCK = 32  # tokens
SLACK = 4  # requests that a replica may have more than the least loaded one
CAPACITY = 1 << 16  # digests remembered of one replica


class PrefixRouter:
    """Call `choose` once per prompt: it remembers its answer."""

    def __init__(self) -> None:
        self._sent: dict[int, OrderedDict[bytes, None]] = {}

    def choose(self, prompt: Sequence[int], loads: Mapping[int, int]) -> int:
        """Return the replica for a prompt. `loads`: requests under way, by replica."""
        assert loads
        digests = leading(prompt)
        least = min(loads, key=lambda replica: (loads[replica], replica))
        open_ = [replica for replica in loads if loads[replica] <= loads[least] + SLACK]
        best = max(open_, key=lambda replica: (self._known(replica, digests), -loads[replica]))
        chosen = best if self._known(best, digests) else least
        sent = self._sent.setdefault(chosen, OrderedDict())
        for digest in digests:
            sent[digest] = None
            sent.move_to_end(digest)
        while len(sent) > CAPACITY:
            sent.popitem(last=False)
        return chosen

    def forget(self, replica: int) -> None:
        """Its memory is gone."""
        self._sent.pop(replica, None)

    def _known(self, replica: int, digests: Sequence[bytes]) -> int:
        """How many leading blocks a replica was sent."""
        sent = self._sent.get(replica, OrderedDict())
        return next((n for n, digest in enumerate(digests) if digest not in sent), len(digests))


def leading(prompt: Sequence[int]) -> list[bytes]:
    """Return the digests of all full blocks."""
    digests, before = [], b""
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        block = np.asarray(prompt[start : start + BLOCK], np.int64).tobytes()
        before = hashlib.blake2b(before + block, digest_size=16).digest()
        digests.append(before)
    return digests
