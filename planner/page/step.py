"""What a step's time is spent on, and the pipeline schedule that it runs."""

from collections.abc import Mapping
from typing import Any

from parctl.planner.chart.chart import Chart, chart_of_spec, with_seconds
from parctl.planner.chart.svg import STYLE as CHART_STYLE
from parctl.planner.chart.svg import chart_svg
from parctl.planner.chart.text import heading, summary
from parctl.planner.page.parts import bar, legend, paragraph, section, table
from parctl.planner.plan import Plan
from parctl.planner.time.calibration import Calibration
from parctl.planner.time.planned import action_times
from parctl.topology.model import Topology

MOST_RANKS = 32  # of a pipeline that is drawn
ROUNDS = 4  # micro-batches per pipeline rank that are drawn, fewer where ranks hold several stages


def step_section(plan: Plan) -> str:
    basis, parts = plan.time.get("step_time_basis"), plan.time.get("step_parts_s")
    if "inference" in plan.time:
        return _inference_section(plan.time["inference"])
    if parts is None:
        return section("Step time", paragraph(str(basis or "not estimated"), "dim"))
    step = plan.time["step_time_s"]
    spent = sorted(((value, name) for name, value in parts.items() if value > 0), reverse=True)
    shares = [
        (number, value / step, f"{name}: {value:.3g} s, {value / step:.1%}")
        for number, (value, name) in enumerate(spent)
    ]
    rows = [[name, f"{value:.3g} s", f"{value / step:.1%}"] for value, name in spent]
    return section(
        "What a step is spent on",
        paragraph(f"{step:.3g} s per step; {basis}.", "dim"),
        bar(shares),
        legend(
            (number, f"{name} {value / step:.0%}") for number, (value, name) in enumerate(spent)
        ),
        "<p></p>",
        table(("part", "seconds", "share"), rows, numbers=(1, 2)),
    )


def _inference_section(times: Mapping[str, Any]) -> str:
    if "per_token_s" not in times:
        return section("How long tokens take", paragraph(times["basis"], "dim"))
    full = times["full"]
    rows = [
        ["first token", _ms(times["first_token_s"]), _ms(full["first_token_s"])],
        ["each further token", _ms(times["per_token_s"]), _ms(full["per_token_s"])],
        [
            "tokens per second",
            f"{1 / times['per_token_s']:,.4g}",
            f"{full['tokens_per_s']:,.4g} in all",
        ],
    ]
    told = (
        f"{times['prompt_tokens']:,} tokens in, {times['output_tokens']:,} out; {times['basis']}."
    )
    head = ("", "one request", f"{full['sequences']:,} requests at once")
    return section(
        "How long tokens take", paragraph(told, "dim"), table(head, rows, numbers=(1, 2))
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms"


def schedule_section(plan: Plan, topology: Topology, calibration: Calibration | None) -> str:
    pp = plan.layout.axes.get("pp", 1)
    micro_batches = plan.time.get("micro_batches_per_step")
    if pp == 1 or micro_batches is None:
        words = "One pipeline stage: no rank waits for another one's layers."
        if pp > 1:
            words = "Forward passes only: a request goes from stage to stage."
        return section("Pipeline schedule", paragraph(words, "dim"))
    if pp > MOST_RANKS:
        return section("Pipeline schedule", paragraph(f"{pp} pipeline ranks, not drawn.", "dim"))
    chart = schedule_chart(plan, pp, micro_batches)
    notes = []
    if chart.num_micro_batches < micro_batches:
        notes.append(
            f"Drawn with {chart.num_micro_batches} of {micro_batches:,} micro-batches; more only "
            "lengthen the steady state."
        )
    parts = plan.time.get("step_parts_s")
    if parts is not None:
        chart = with_seconds(chart, *action_times(plan, topology, calibration))
        share = parts["bubble"] / plan.time["step_time_s"]
        notes.append(f"With all micro-batches, waiting is {share:.1%} of the step.")
    return section(
        "Pipeline schedule",
        f"<style>{CHART_STYLE}</style>",
        paragraph(heading(chart), "dim"),
        f'<div class="scroll">{chart_svg(chart, alone=False)}</div>',
        *(paragraph(line, "dim small") for line in (*summary(chart, "grey is idle"), *notes)),
    )


def schedule_chart(plan: Plan, pp: int, micro_batches: int) -> Chart:
    """The plan's schedule over as many micro-batches as show its steady state."""
    spec = plan.recipe.parallelism
    rounds = max(2, ROUNDS // spec.virtual_stages)
    drawn = micro_batches if spec.schedule_table else min(micro_batches, rounds * pp)
    return chart_of_spec(spec, pp=pp, num_micro_batches=drawn)
