"""One call from its prompts to its answers: submitted, written as tokens come, and given up early.

Whatever way a call ends - answered, the client gone, an engine gone - nothing of it stays in the
engines: leaving the `with` cancels what is still running.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from parctl.errors import ParctlError
from parctl.runtime.inference.detokenize import TextTokenizer
from parctl.runtime.inference.request import Request
from parctl.runtime.serving.ask import Ask
from parctl.runtime.serving.hub import Hub, Running
from parctl.runtime.serving.metrics import Metrics
from parctl.runtime.serving.samples import Answer, AnswerWriter, Part


class Call:
    """The requests of one call, a request per prompt."""

    def __init__(
        self, hub: Hub, ask: Ask, running: list[Running], tokenizer: TextTokenizer
    ) -> None:
        self._hub, self._ask, self._running = hub, ask, running
        self._writers = [
            AnswerWriter(index, tokenizer, ask.sampling, before=ask.text_before(index))
            for index in range(len(ask.prompts) * ask.n)
        ]

    @property
    def answers(self) -> list[Answer]:
        return [writer.answer for writer in self._writers]

    async def parts(self, metrics: Metrics) -> AsyncIterator[tuple[int, Part, int]]:
        """Yield what is new: index of the answer, the part, and how much text was before it.

        Raises ReplicaLostError or RefusedError when an engine does not see it through.
        """
        waiting = {
            asyncio.ensure_future(running.events.get()): place
            for place, running in enumerate(self._running)
        }
        begun = time.monotonic()
        last: dict[int, float] = {}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    place = waiting.pop(future)
                    event = future.result()
                    if isinstance(event, ParctlError):
                        raise event
                    now = time.monotonic()
                    for emitted in event:
                        index = place * self._ask.n + emitted.sample_index
                        writer = self._writers[index]
                        if writer.answer.finish_reason is not None:
                            continue
                        if not last:
                            metrics.first.observe(now - begun)
                        elif index in last:
                            metrics.between.observe(now - last[index])
                        last[index] = now
                        offset = len(writer.answer.text)
                        part = writer.add(emitted)
                        if writer.stopped_by_text and emitted.finish_reason is None:
                            self._hub.cancel(self._running[place], emitted.sample_index)
                        yield index, part, offset
                    if self._open(place):
                        more = asyncio.ensure_future(self._running[place].events.get())
                        waiting[more] = place
        finally:
            for future in waiting:
                future.cancel()

    def _open(self, place: int) -> bool:
        own = self._writers[place * self._ask.n : (place + 1) * self._ask.n]
        return any(writer.answer.finish_reason is None for writer in own)

    async def finish(self, metrics: Metrics) -> list[Answer]:
        """Wait for all answers."""
        async for _ in self.parts(metrics):
            pass
        return self.answers


@contextmanager
def calling(hub: Hub, ask: Ask, tokenizer: TextTokenizer, *, client: str) -> Iterator[Call]:
    """Submit a call; what is not answered when the `with` is left is cancelled."""
    running: list[Running] = []
    try:
        now = time.time()
        for prompt in ask.prompts:
            request = Request(
                id="",
                prompt_tokens=prompt,
                sampling=ask.sampling,
                n=ask.n,
                arrival=now,
                client=client,
            )
            running.append(hub.submit(request))
        yield Call(hub, ask, running, tokenizer)
    finally:
        for one in running:
            hub.cancel(one)
