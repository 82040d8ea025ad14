"""`parctl bench`: what this cluster's links and devices reach."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parctl.cli.options import DevicesOption, OutputOption, RecipeArgument, SetOption
from parctl.cli.run_options import BackendOption

if TYPE_CHECKING:
    from parctl.launcher.benchmark import Benchmark


def bench(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    devices: DevicesOption = None,
    backend: BackendOption = None,
    max_mb: Annotated[
        float | None,
        typer.Option(
            "--max-mb",
            min=0.01,
            metavar="MB",
            help="Largest collective; 268 on GPUs and 4 on CPUs.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Write here; else where `parctl plan` looks for this cluster's.",
            show_default=False,
        ),
    ] = None,
    output: OutputOption = "table",
) -> None:
    """Measure collectives and matrix products where a job would run.

    Runs a short program with the job's own layout, on any back end: every collective on the real
    groups of every axis by size, and the products of the job's layers. Latency and rate are fitted
    per class of link; `parctl plan` takes them on this cluster from then on.
    """
    from parctl.cli.output import check_format, note, print_document
    from parctl.launcher.backends import current_backend
    from parctl.launcher.benchmark import bench_plan, run_benchmark
    from parctl.launcher.calibrations import save_calibration
    from parctl.launcher.contexts import resolve_context
    from parctl.planner.cluster import cluster_for
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml"))
    loaded = load_recipe(recipe, set_)
    chosen = resolve_context(backend=backend, recipe_backend=loaded.launch.backend)
    owner = current_backend(chosen.backend)
    topology = cluster_for(loaded, owner.cluster, devices)
    plan = bench_plan(
        loaded,
        topology,
        backend=chosen.backend,
        max_bytes=None if max_mb is None else int(max_mb * 1e6),
    )
    done = run_benchmark(owner, plan, topology)
    path = save_calibration(done.calibration, calibration)
    if output == "table":
        _show(done)
    else:
        print_document(done.calibration.to_json(), output)
    note(f"measured by run {done.run_id}; written to: {path}")


def _show(done: "Benchmark") -> None:
    from parctl.cli.table import print_table
    from parctl.planner.sizes import size_text

    calibration = done.calibration
    collectives = [line for line in calibration.measurements if "collective" in line]
    if collectives:
        proofs = {proof.axis: proof for proof in done.plan.layout.proofs}
        rows = [
            [
                line["axis"],
                str(line["size"]),
                proofs[line["axis"]].worst_link,
                line["collective"],
                size_text(line["bytes"]),
                f"{line['seconds'] * 1e6:,.1f}",
                f"{line['bytes'] / line['seconds'] / 1e9:.3g}",
            ]
            for line in collectives
        ]
        print_table(["axis", "ranks", "link", "collective", "size", "us", "GB/s"], rows)
        print()
        rows = [
            [
                name,
                f"{link.latency_s * 1e6:.2f}",
                f"{link.bytes_s / 1e9:.4g}",
                f"{link.error:.0%}",
                str(link.samples),
            ]
            for name, link in calibration.links.items()
        ]
        print_table(["link", "latency us", "GB/s", "half within", "samples"], rows)
        print()
    rows = [
        [
            " x ".join(str(side) for side in line["product"]),
            line["dtype"],
            f"{line['seconds'] * 1e3:.3g}",
            f"{_tera(line['product'], line['seconds']):.3g}",
        ]
        for line in calibration.measurements
        if "product" in line
    ]
    print_table(["product", "type", "ms", "TFLOP/s"], rows)
    for name, products in calibration.products.items():
        share = "" if products.share is None else f", {products.share:.1%} of the peak"
        print(f"{name}: up to {products.flops / 1e12:.3g} TFLOP/s{share}")


def _tera(shape: list[int], seconds: float) -> float:
    m, k, n = shape
    return 2.0 * m * k * n / seconds / 1e12
