"""`parctl explain`: what a form of parallelism is, and what a schedule really looks like."""

from typing import Annotated

import typer


def explain(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="Such as tp, fsdp, 1f1b, ring; `schedule` draws a schedule.",
            show_default=False,
        ),
    ] = None,
    pp: Annotated[
        int, typer.Option("--pp", min=1, max=128, metavar="N", help="schedule: pipeline ranks.")
    ] = 4,
    micro_batches: Annotated[
        int, typer.Option("--micro-batches", min=1, metavar="N", help="schedule: per step.")
    ] = 8,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="NAME",
            help="layer, gpipe, 1f1b, interleaved-1f1b, zero-bubble, zbv or dualpipev.",
        ),
    ] = "1f1b",
    virtual_stages: Annotated[
        int | None,
        typer.Option(
            "--virtual-stages",
            min=1,
            metavar="N",
            help="schedule: stages per rank.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="text, json, mermaid; svg of a schedule.")
    ] = "text",
) -> None:
    """Explain a form of parallelism, compare all of them, or draw a schedule.

    Without TOPIC: what each form slices, sends and saves, side by side. `explain schedule` draws
    the chart from the actions that ranks would execute, with the idle share beside the closed form
    of its paper.
    """
    import shutil
    import sys

    from parctl.cli.output import check_format, print_document
    from parctl.planner.guide.topic import find_topic

    charted = topic is not None and topic.strip().lower() in ("schedule", "schedules")
    check_format(output, ("text", "json", "mermaid", *(["svg"] if charted else [])))
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if charted:
        from parctl.planner.chart.chart import chart_of

        chart = chart_of(
            schedule, pp=pp, num_micro_batches=micro_batches, virtual_stages=virtual_stages
        )
        if output == "json":
            print_document(chart.to_json(), output)
        elif output == "svg":
            from parctl.planner.chart.svg import chart_svg

            typer.echo(chart_svg(chart), nl=False)
        elif output == "mermaid":
            from parctl.planner.chart.gantt import chart_mermaid

            typer.echo(chart_mermaid(chart), nl=False)
        else:
            from parctl.planner.chart.text import chart_text

            typer.echo(chart_text(chart, width=width), nl=False)
        return
    from parctl.planner.guide import text

    found = find_topic(topic) if topic is not None else None
    if output == "json":
        print_document(text.topic_json(found) if found else text.comparison_json(), output)
    elif output == "mermaid":
        typer.echo(text.topic_mermaid(found) if found else text.comparison_mermaid(), nl=False)
    elif found:
        words = text.topic_text(found, width=min(width or 100, 100), widest=width)
        typer.echo(words, nl=False)
    else:
        typer.echo(text.comparison_text(), nl=False)
