"""The parallelism shorthand: `TP8+SP+FSDP16` read term by term, every fault with its column.

::

    form = "auto" | term {"+" term}    no axis twice; upper and lower case are the same
    term = "DP"[n] | "DDP"[n] | "FSDP"[n] | "HSDP"[a "x" b] | "ZERO"(1|2|3)[n] | "TP"[n] | "SP"
         | "CP"[n]["@"(ring|ulysses)] | "EP"[n] | "ETP"[n] | "PP"[n]["@"schedule[":"v]]
         | "LAYER"[n] | "OP"n

The one idea: a form is only another spelling of the mapping `{tp: 8, sp: true, fsdp: 16}`.
`read_form` returns that mapping, so the shorthand and the mapping are checked by the same code and
mean the same by construction.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from parctl.recipes.spec import ParallelismSpec, Schedule

MAX_DEGREE = 1 << 20  # ten times the largest cluster; beyond it a number is a slip of the finger
SCHEDULES: tuple[str, ...] = get_args(Schedule)
DEFAULT_VIRTUAL_STAGES = {"interleaved-1f1b": 2, "zbv": 2, "dualpipev": 2}  # the others: 1
FIXED_VIRTUAL_STAGES = {"gpipe": 1, "1f1b": 1, "zbv": 2, "dualpipev": 2}  # by the schedule itself
SP_HINT = (
    "write `TPn+SP`: SP splits activations inside a TP group; "
    "to split the sequence itself for attention write `CPn@ring` or `CPn@ulysses`"
)
INFER = "auto"  # degree in the mapping form: the axis is named, its size is to be inferred

_TERM = re.compile(r"(?P<name>[A-Za-z]+)(?P<rest>.*)", re.DOTALL)
_NAMES = ("DP", "DDP", "FSDP", "HSDP", "ZERO1", "ZERO2", "ZERO3", "TP", "SP", "CP", "EP", "ETP",
          "PP", "LAYER", "OP")  # fmt: skip
_SIMPLE = {"DP": "dp", "DDP": "dp", "FSDP": "fsdp", "TP": "tp", "EP": "ep", "ETP": "etp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFault:
    offset: int  # characters from the start of the form
    message: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a form says, as the keys and values of the mapping form, and where each was said."""

    values: Mapping[str, Any]
    offsets: Mapping[str, int]
    faults: tuple[FormFault, ...]


def read_form(text: str) -> Form:
    """Read a form; faults are collected, and what could be read is returned.

    >>> dict(read_form("TP8+SP+FSDP").values)
    {'tp': 8, 'sp': True, 'fsdp': 'auto'}
    """
    if text.strip().lower() == "auto":
        start = len(text) - len(text.lstrip())
        return Form(values={"auto": True}, offsets={"auto": start}, faults=())
    reader = _FormReader()
    position = 0
    for piece in text.split("+"):
        leading = len(piece) - len(piece.lstrip())
        reader.term(piece.strip(), position + leading)
        position += len(piece) + 1
    return Form(values=reader.values, offsets=reader.offsets, faults=tuple(reader.faults))


class _FormReader:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.offsets: dict[str, int] = {}
        self.faults: list[FormFault] = []

    def fault(self, offset: int, message: str, hint: str) -> None:
        self.faults.append(FormFault(offset=offset, message=message, hint=hint))

    def give(self, key: str, value: Any, offset: int, term: str) -> None:
        if key in self.values:
            message = f"`{term}` gives {key} a second time"
            hint = f"name each axis once; {key} may be sized in one term only"
            if key == "fsdp":
                hint += "; `ZERO18` is stage 1 over 8 ranks, and FSDP is stage 3"
            self.fault(offset, message, hint)
        else:
            self.values[key], self.offsets[key] = value, offset

    def term(self, term: str, offset: int) -> None:
        if not term:
            self.fault(offset, "found nothing, expected a term", "write terms as in `TP8+SP+FSDP`")
            return
        match = _TERM.fullmatch(term)
        name = match["name"].upper() if match else ""
        rest = match["rest"] if match else ""
        after = offset + len(name)
        if name == "ZERO":
            self.zero(term, rest, offset)
        elif name == "HSDP":
            self.hybrid(term, rest, offset)
        elif name == "SP":
            self.give("sp", True, offset, term)
            if rest:
                self.fault(
                    after, f"found `{rest}` after SP, which has no degree of its own", SP_HINT
                )
        elif name in _SIMPLE:
            self.give(_SIMPLE[name], self.degree(name, rest, after), offset, term)
        elif name == "CP":
            self.context(term, rest, offset)
        elif name == "PP":
            self.pipeline(term, rest, offset)
        elif name == "LAYER":
            self.give("pp", self.degree(name, rest, after), offset, term)
            self.give("layer", True, offset, term)
        elif name == "OP":
            degree = self.degree(name, rest, after)
            if degree == INFER and not rest:
                self.fault(after, "OP needs its number of branches", "for example `OP2`")
            self.give("operator", 1 if degree == INFER else degree, offset, term)
        elif name == "AUTO":
            self.fault(offset, "`auto` stands alone", "write `auto`, or the terms without it")
        else:
            self.unknown(term, offset)

    def degree(self, name: str, digits: str, offset: int) -> Any:
        """Read the number after a name; nothing means that the degree is to be inferred."""
        if not digits:
            return INFER
        if not re.fullmatch(r"[0-9]+", digits):
            first = re.search(r"[1-9][0-9]{0,6}", digits)
            message = f"found `{digits}` after {name}, expected a degree of at least 1"
            hint = f"write `{name}{first.group() if first else 8}`"
            if name.startswith("ZERO"):
                hint += f", the degree behind the stage {name[-1]}"
            elif name == "LAYER" and "@" in digits:
                hint += ": one stage runs at a time, so there is no schedule; for one write `PP`"
            self.fault(offset, message, f"{hint}; terms are joined by `+`, as in `TP8+SP+FSDP16`")
            return INFER
        if len(digits) > 7 or not 1 <= int(digits) <= MAX_DEGREE:
            shown = digits if len(digits) <= 12 else f"{digits[:9]}..."
            message = f"found degree {shown} of {name}, expected 1 to {MAX_DEGREE:,}"
            self.fault(offset, message, f"leave the number out (`{name}`) and it is inferred")
            return INFER
        return int(digits)

    def zero(self, term: str, rest: str, offset: int) -> None:
        if not rest or rest[0] not in "123":
            message = f"found `{term}`, expected the stage 1, 2 or 3 after ZERO"
            self.fault(offset + 4, message, "`ZERO1`, `ZERO2` or `ZERO3`; FSDP is ZeRO stage 3")
            self.give("fsdp", INFER, offset, term)
            return
        self.give("fsdp", self.degree(f"ZERO{rest[0]}", rest[1:], offset + 5), offset, term)
        self.give("zero_stage", int(rest[0]), offset, term)

    def hybrid(self, term: str, rest: str, offset: int) -> None:
        replicas: Any = INFER
        shards: Any = INFER
        if rest:
            first, cross, second = rest.lower().partition("x")
            if not cross or not first or not second:
                message = f"found `{term}`, expected replicas x shards after HSDP"
                self.fault(offset + 4, message, "for example `HSDP2x8`, or `HSDP` to infer both")
            else:
                replicas = self.degree("HSDP", first, offset + 4)
                shards = self.degree("HSDP", second, offset + 5 + len(first))
        self.give("dp", replicas, offset, term)
        self.give("fsdp", shards, offset, term)

    def context(self, term: str, rest: str, offset: int) -> None:
        digits, at, kind = rest.partition("@")
        self.give("cp", self.degree("CP", digits, offset + 2), offset, term)
        if not at:
            return
        if kind.lower() not in ("ring", "ulysses"):
            message = f"found `{kind}` after CP{digits}@, expected ring or ulysses"
            self.fault(offset + 3 + len(digits), message, f"write `CP{digits}@ring`")
            return
        self.give("cp_kind", kind.lower(), offset + 3 + len(digits), term)

    def pipeline(self, term: str, rest: str, offset: int) -> None:
        digits, at, tail = rest.partition("@")
        stages, colon, virtual = digits.partition(":")
        if colon and not at:
            message = f"found `{rest}` after PP, expected a schedule before `:`"
            self.fault(offset + 2, message, f"write `PP{stages}@interleaved-1f1b:{virtual or 2}`")
            digits = stages
        self.give("pp", self.degree("PP", digits, offset + 2), offset, term)
        if not at:
            return
        schedule, colon, virtual = tail.lower().partition(":")
        start = offset + 3 + len(digits)
        if schedule not in SCHEDULES:
            near = get_close_matches(schedule, SCHEDULES, n=1)
            message = f"found schedule `{schedule}`, expected one of {', '.join(SCHEDULES)}"
            self.fault(start, message, f"write `PP{digits}@{near[0] if near else '1f1b'}`")
            return
        self.give("schedule", schedule, start, term)
        if not colon:
            return
        stages = self.degree(f"PP{digits}@{schedule}:", virtual, start + len(schedule) + 1)
        if stages == INFER:
            if not virtual:
                message = "found no number after `:`, expected virtual stages per rank"
                self.fault(start + len(schedule) + 1, message, f"write `{schedule}:2`")
            return
        self.give("virtual_stages", stages, start + len(schedule) + 1, term)

    def unknown(self, term: str, offset: int) -> None:
        word = re.match(r"[A-Za-z]*", term.upper())
        near = get_close_matches(word.group() if word else "", _NAMES, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"terms are {', '.join(_NAMES)}"
        shown = term if len(term) <= 40 else term[:37] + "..."
        self.fault(offset, f"found `{shown}`, expected a term", hint)


def format_form(spec: ParallelismSpec) -> str:
    """Write the canonical form of a spec; reading it back gives the spec.

    >>> from parctl.recipes.parallelism import build_parallelism
    >>> format_form(build_parallelism(read_form("fsdp16+sp+tp8").values))
    'TP8+SP+FSDP16'
    """
    if spec.auto:
        return "auto"
    terms = [_term("DP", spec.dp), _term("TP", spec.tp)]
    terms += ["SP"] if spec.sp else []
    pipeline = _term("LAYER" if spec.layer else "PP", spec.pp)
    if pipeline and not spec.layer:
        pipeline += _schedule_suffix(spec)
    context = _term("CP", spec.cp)
    if context and spec.cp_kind != "ring":
        context += f"@{spec.cp_kind}"
    shard = "FSDP" if spec.zero_stage == 3 else f"ZERO{spec.zero_stage}"
    terms += [pipeline, context, _term("EP", spec.ep), _term("ETP", spec.etp)]
    terms += [_term(shard, spec.fsdp), f"OP{spec.operator}" if spec.operator > 1 else ""]
    return "+".join(term for term in terms if term) or "DP1"


def _term(name: str, degree: int | None) -> str:
    if degree is None:
        return name
    return f"{name}{degree}" if degree > 1 else ""


def _schedule_suffix(spec: ParallelismSpec) -> str:
    if spec.virtual_stages != DEFAULT_VIRTUAL_STAGES.get(spec.schedule, 1):
        return f"@{spec.schedule}:{spec.virtual_stages}"
    return f"@{spec.schedule}" if spec.schedule != "1f1b" else ""
