"""Topics of the guide: what a form is, when to use it, what it costs, who described it.

The texts are data, `topics/*.yaml`, one list per family. A topic is found by its name or by any of
the names that the literature has for it; case, blanks and underscores do not matter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from parctl.errors import UsageError
from parctl.planner.chart.chart import Chart, chart_of

FOLDER = Path(__file__).parent / "topics"
FAMILIES = ("data", "layers", "pipelines", "memory", "combinations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    what: str
    formula: str
    where: str  # what its letters are
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    title: str
    year: int
    arxiv: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the comparison table."""

    sliced: str
    along: str
    collective: str
    bandwidth: str  # how much of it is needed
    memory: str  # how well it saves it
    compute: str  # how well devices are used
    training: str
    inference: str
    like: str  # an analogy


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    name: str
    aliases: tuple[str, ...]
    family: str
    title: str
    recipe: str | None  # how a recipe asks for it; None: it does not
    use: str  # training, inference
    what: str
    when: str
    pro: tuple[str, ...]
    con: tuple[str, ...]
    cost: tuple[Cost, ...]
    source: Source
    drawing: str | None  # None: its schedule is drawn
    mermaid: str | None
    schedule: Mapping[str, Any] | None  # name, pp, micro_batches, virtual_stages
    see: tuple[str, ...]
    row: Row | None

    @property
    def chart(self) -> Chart | None:
        """The schedule that illustrates the topic, if it is about one."""
        if self.schedule is None:
            return None
        return chart_of(
            self.schedule["name"],
            pp=self.schedule["pp"],
            num_micro_batches=self.schedule["micro_batches"],
            virtual_stages=self.schedule.get("virtual_stages"),
        )


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, family by family."""
    import yaml

    found = []
    for family in FAMILIES:
        text = (FOLDER / f"{family}.yaml").read_text(encoding="utf-8")
        found += [_topic(family, entry) for entry in yaml.safe_load(text)]
    return tuple(found)


def find_topic(name: str) -> Topic:
    """Return the topic that `name` means. UsageError names the nearest ones.

    >>> find_topic("Sequence Parallelism").name, find_topic("activation_checkpointing").name
    ('sp', 'recompute')
    """
    known = {alias: topic for topic in topics() for alias in (*topic.aliases, topic.name)}
    asked = re.sub(r"[\s_]+", "-", name.strip().lower())
    if asked in known:
        return known[asked]
    nearest = get_close_matches(asked, known, n=5, cutoff=0.5)
    names = list(dict.fromkeys(known[alias].name for alias in nearest))[:3]
    among = f"did you mean {' or '.join(f'`{name}`' for name in names)}? " if names else ""
    raise UsageError(
        f"nothing is known of `{name[:60]}`",
        hint=f"{among}`parctl explain` lists the topics",
    )


def _topic(family: str, entry: Mapping[str, Any]) -> Topic:
    source = entry["source"]
    return Topic(
        name=entry["name"],
        aliases=tuple(entry["aliases"]),
        family=family,
        title=entry["title"],
        recipe=entry["recipe"],
        use=entry["use"],
        what=entry["what"].strip(),
        when=entry["when"],
        pro=tuple(entry["pro"]),
        con=tuple(entry["con"]),
        cost=tuple(
            Cost(
                what=cost["what"],
                formula=cost["formula"],
                where=cost["with"],
                example=cost["example"],
            )
            for cost in entry["cost"]
        ),
        source=Source(title=source["title"], year=source["year"], arxiv=source["id"]),
        drawing=entry.get("drawing"),
        mermaid=entry.get("mermaid"),
        schedule=entry.get("schedule"),
        see=tuple(entry["see"]),
        row=Row(**entry["row"]) if "row" in entry else None,
    )
