"""`task: generate`: every prompt of a file completed, in the order of the file.

Replicas share the prompts by turns. Each leader appends an answer to its own part file as soon as
it is there, so an attempt that fails loses none that was written; the next one goes on from what it
finds. When all are through, the first rank puts the parts together in one file.

A line of the output: `{"index", "prompt" or "messages", "choices": [...], "usage": {...}}`, or
`{"index", "prompt" or "messages", "error"}` for a prompt that the engine cannot take.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from parctl.errors import UsageError
from parctl.recipes.inference_spec import GenerateSpec
from parctl.recipes.spec import Recipe
from parctl.runtime.inference.chat import TemplateError, load_template
from parctl.runtime.inference.detokenize import TextTokenizer, load_text
from parctl.runtime.inference.engine import Engine
from parctl.runtime.inference.request import Emitted, Request
from parctl.runtime.serving.answers import Envelope
from parctl.runtime.serving.ask import Ask, BadRequestError, Limits, Reader
from parctl.runtime.serving.bodies import ChatBody, CompletionBody, first_fault
from parctl.runtime.serving.leaders import Leaders
from parctl.runtime.serving.prompts import read_lines, refuse_bad_prompts
from parctl.runtime.serving.samples import AnswerWriter

AHEAD = 2  # times max_sequences: samples that wait in the engine
SAY_S = 5.0  # between lines of progress
OWNED = ("model", "stream", "stream_options")  # of a body: settled here
PARTS = "completions"
OUTPUT = "completions.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt: its place in the file, and what the output repeats of it."""

    index: int
    given: Mapping[str, Any]
    ask: Ask


class NothingAnsweredError(UsageError):
    """Every prompt failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of all prompts, over all replicas."""

    path: Path
    num_answered: int
    num_failed: int
    first_reason: str | None  # why the first of those failed

    def __str__(self) -> str:
        """
        >>> str(Outcome(path=Path("o"), num_answered=7, num_failed=3, first_reason="no tokens"))
        '7 of 10 prompts answered, 3 failed: no tokens'
        """
        text = f"{self.num_answered} of {self.num_answered + self.num_failed} prompts answered"
        return f"{text}, {self.num_failed} failed: {self.first_reason}" if self.num_failed else text


def output_path(spec: GenerateSpec, run_dir: Path) -> Path:
    return run_dir / OUTPUT if spec.output is None else Path(spec.output)


def part_path(run_dir: Path, replica: int) -> Path:
    return run_dir / PARTS / f"replica-{replica}.jsonl"


def generate(
    engine: Engine,
    recipe: Recipe,
    run_dir: Path,
    leaders: Leaders,
    *,
    replica: int,
    num_replicas: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Answer a leader's share of the prompts. Returns False when it was told to stop before."""
    spec, inference, model = recipe.generate, recipe.inference, recipe.model
    assert spec is not None and inference is not None and model is not None
    tokenizer = load_text(inference.tokenizer)
    reader = Reader(
        tokenizer=tokenizer,
        tokenizer_name=inference.tokenizer,
        template=load_template(inference.tokenizer, inference.chat_template),
        defaults=spec.sampling,
    )
    limits = Limits(
        vocab_size=model.vocab_size,
        max_context=engine.max_context,
        max_sequences=inference.max_sequences,
        max_samples=inference.max_sequences,
    )
    refuse_bad_prompts(spec.prompts)
    part = part_path(run_dir, replica)
    part.parent.mkdir(parents=True, exist_ok=True)
    done = {row["index"] for row in read_part(part)}
    jobs = read_jobs(spec.prompts, reader, limits, share=(replica, num_replicas), done=done)
    with part.open("a", encoding="utf-8") as file:

        def write(row: Mapping[str, Any]) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()

        name = "" if num_replicas == 1 else f"replica {replica}: "
        writer = Writer(
            engine, recipe, tokenizer, leaders, write=write, say=lambda text: say(name + text)
        )
        finished = writer.run(jobs, stop)
    engine.close()
    return finished


def read_jobs(
    prompts: str,
    reader: Reader,
    limits: Limits,
    *,
    share: tuple[int, int],
    done: set[int],
) -> Iterator[Job | dict[str, Any]]:
    """Yield what is to be done, and as rows of the output what cannot be."""
    replica, num_replicas = share
    for index, (_, line) in enumerate(read_lines(prompts)):
        if index % num_replicas != replica or index in done:
            continue
        given = json.loads(line) if prompts.endswith(".jsonl") else {"prompt": line}
        try:
            yield Job(index=index, given=given, ask=read_ask(given, reader, limits))
        except (BadRequestError, TemplateError) as error:
            kind = kind_of(given)
            yield {"index": index, kind: given[kind], "error": error.message}


def kind_of(given: Mapping[str, Any]) -> str:
    """Return the key of what is to be continued; `refuse_bad_prompts` has seen to it."""
    return "messages" if "messages" in given else "prompt"


def read_ask(given: Mapping[str, Any], reader: Reader, limits: Limits) -> Ask:
    """Read a line as the endpoint would read a body; raises BadRequestError."""
    body = {key: value for key, value in given.items() if key not in OWNED} | {"model": "this"}
    try:
        if "messages" in body:
            return reader.chat(ChatBody.model_validate_json(json.dumps(body)), limits)
        return reader.completion(CompletionBody.model_validate_json(json.dumps(body)), limits)
    except ValidationError as error:
        message, param = first_fault(error)
        raise BadRequestError(message, param=param) from error


def read_part(part: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a part file; a torn last one is cut off."""
    if not part.exists():
        return []
    content = part.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        part.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


class Writer:
    """Keeps the engine busy with jobs, and writes the answers as they are complete."""

    def __init__(
        self,
        engine: Engine,
        recipe: Recipe,
        tokenizer: TextTokenizer,
        leaders: Leaders,
        *,
        write: Callable[[Mapping[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        assert recipe.inference is not None and recipe.model is not None
        self._engine, self._tokenizer, self._leaders = engine, tokenizer, leaders
        self._write, self._say = write, say
        self._most = AHEAD * recipe.inference.max_sequences
        self._model = recipe.model.name
        self._jobs: dict[int, Job] = {}
        self._answers: dict[int, list[AnswerWriter]] = {}
        self._num_answered = self._num_failed = self._num_tokens = 0

    def run(self, jobs: Iterator[Job | dict[str, Any]], stop: Callable[[], bool]) -> bool:
        """Return False when `stop` came before the end."""
        began = said = time.monotonic()
        more, stopped, together = True, False, self._leaders.together
        while together or (not stopped and (more or self._jobs)):
            stopped = stopped or stop()
            while more and not stopped and self._engine.unfinished() < self._most:
                job = next(jobs, None)
                more = job is not None
                if isinstance(job, Job):
                    self._begin(job)
                elif job is not None:
                    self._num_failed += 1
                    self._write(job)
            for emitted in self._engine.step() if together or self._engine.unfinished() else ():
                self._take(emitted)
            if together and self._leaders.all_through(stopped or not (more or self._jobs)):
                break
            if time.monotonic() - said >= SAY_S:
                said = time.monotonic()
                self._progress(said - began)
        self._progress(time.monotonic() - began)
        return not (stopped and (more or self._jobs))

    def _begin(self, job: Job) -> None:
        ask = job.ask
        self._jobs[job.index] = job
        self._answers[job.index] = [
            AnswerWriter(index, self._tokenizer, ask.sampling, before=ask.text_before(index))
            for index in range(len(ask.prompts) * ask.n)
        ]
        for place, prompt in enumerate(ask.prompts):
            self._engine.add(
                Request(
                    id=f"{job.index}.{place}",
                    prompt_tokens=prompt,
                    sampling=ask.sampling,
                    n=ask.n,
                    arrival=float(job.index),
                )
            )

    def _take(self, emitted: Emitted) -> None:
        index, place = (int(part) for part in emitted.request_id.split("."))
        job = self._jobs.get(index)
        if job is None:
            return
        writers = self._answers[index]
        writer = writers[place * job.ask.n + emitted.sample_index]
        if writer.answer.finish_reason is not None:
            return
        self._num_tokens += 1
        writer.add(emitted)
        if writer.stopped_by_text and emitted.finish_reason is None:
            self._engine.cancel(emitted.request_id, emitted.sample_index)
        if all(one.answer.finish_reason is not None for one in writers):
            del self._jobs[index], self._answers[index]
            envelope = Envelope(id="", created=0, model=self._model, ask=job.ask)
            whole = envelope.whole([one.answer for one in writers])
            kind = kind_of(job.given)
            self._num_answered += 1
            self._write(
                {
                    "index": index,
                    kind: job.given[kind],
                    "choices": whole["choices"],
                    "usage": whole["usage"],
                }
            )

    def _progress(self, seconds: float) -> None:
        rate = self._num_tokens / seconds if seconds > 0 else 0.0
        failed = f"{self._num_failed} failed, " if self._num_failed else ""
        self._say(
            f"{self._num_answered} prompts answered, {failed}{len(self._jobs)} under way, "
            f"{rate:,.0f} tokens/s"
        )


def join_parts(spec: GenerateSpec, run_dir: Path, num_replicas: int) -> Outcome:
    """Write all answers in the order of the prompts."""
    rows = [
        row for replica in range(num_replicas) for row in read_part(part_path(run_dir, replica))
    ]
    rows.sort(key=lambda row: row["index"])
    if [row["index"] for row in rows] != list(range(len(rows))):
        raise UsageError(
            f"{run_dir / PARTS} holds the answers of some replicas only",
            hint="more than one node needs a run directory that all of them share",
        )
    path = output_path(spec, run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(beside, path)
    reasons = [str(row["error"]) for row in rows if "error" in row]
    return Outcome(
        path=path,
        num_answered=len(rows) - len(reasons),
        num_failed=len(reasons),
        first_reason=reasons[0] if reasons else None,
    )
