"""`parctl verify`: does the parallel shape compute what one process computes?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from parctl.cli.options import OutputOption, RecipeArgument, SetOption

if TYPE_CHECKING:
    from parctl.launcher.verification import Part, Verification


def verify(
    recipe: RecipeArgument,
    set_: SetOption = [],  # noqa: B006  (typer copies it)
    ranks: Annotated[
        int, typer.Option("--ranks", min=2, max=64, metavar="N", help="Use at most N processes.")
    ] = 8,
    precision: Annotated[
        str, typer.Option("--precision", help="fp64, fp32 or bf16: the tolerance follows from it.")
    ] = "fp64",
    output: OutputOption = "table",
) -> int:
    """Train a recipe small, split and in one process, and compare the two step by step.

    The model is shrunk, and degrees are folded to what N local processes allow: the table says
    from what to what. Loss and gradient norm of every step have to agree: to 1e-10 in fp64, 1e-5
    in fp32, 0.1% and 0.5% in bf16. Exits with 0 when they do, with 1 when they do not.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from parctl.cli.output import check_format, note, print_document
    from parctl.errors import UsageError
    from parctl.launcher.trials import Trials
    from parctl.launcher.verification import TOLERANCE, Verifier, write_text
    from parctl.recipes.loader import load_recipe

    check_format(output, ("table", "json", "yaml"))
    chosen = next((known for known in TOLERANCE if known == precision), None)
    if chosen is None:
        raise UsageError(
            f"--precision {precision}: no such one here", hint=f"one of {', '.join(TOLERANCE)}"
        )
    loaded = load_recipe(recipe, set_)
    if loaded.task != "train":
        raise UsageError(
            f"recipe {loaded.name} has task: {loaded.task}", hint="`verify` trains: task: train"
        )
    with TemporaryDirectory(prefix="parctl-verify-") as directory:
        text = Path(directory) / "text.txt"
        write_text(text)
        with Trials(Path(directory) / "trials") as trials:
            found = Verifier(trials, text).verify(
                loaded, precision=chosen, max_ranks=ranks, say=note
            )
    if output == "table":
        _show(found)
    else:
        print_document(_document(found), output)
    return 0 if found.equal else 1


def _show(found: "Verification") -> None:
    from parctl.cli.table import print_table

    print(f"{found.recipe}: {found.form}, in {found.precision}")
    model, small = found.model, found.small
    print(f"model {model.name}, shrunk:")
    shown = ("num_layers", "dim", "num_heads", "num_kv_heads", "ffn_dim", "vocab_size")
    rows = [[name, f"{getattr(model, name):,}", f"{getattr(small, name):,}"] for name in shown]
    if model.moe and small.moe:
        rows.append(["num_experts", str(model.moe.num_experts), str(small.moe.num_experts)])
        rows.append(["top_k", str(model.moe.top_k), str(small.moe.top_k)])
    print_table(["field", "recipe", "here"], rows)
    for part in found.parts:
        _show_part(part)
    print(f"\n{_verdict(found)}")


def _show_part(part: "Part") -> None:
    from parctl.cli.table import print_table

    print(f"\n{part.form}: {part.num_ranks} ranks beside one process")
    for axis, (given, here) in part.changes.items():
        name = "left open" if given is None else str(given)
        print(f"  {axis} {name} -> {here}" + (" (left out of this part)" if here == 1 else ""))
    if part.failure is not None:
        print(part.failure)
        return
    rows = [
        [
            str(number.step),
            number.name,
            f"{number.one_process:.12g}",
            f"{number.parallel:.12g}",
            f"{number.difference:.1e}",
            "equal" if number.equal else f"DIFFERS (allowed: {number.tolerance:g})",
        ]
        for number in part.numbers
    ]
    print_table(["step", "number", "one process", "parallel", "difference", ""], rows)
    print(f"{part.seconds_one_process:.1f} s in one process, {part.seconds:.1f} s in parallel")


def _verdict(found: "Verification") -> str:
    wrong = [part.form for part in found.parts if not part.equal]
    if wrong:
        return f"NOT EQUAL to one process: {', '.join(wrong)}"
    worst = max(part.worst for part in found.parts)
    return f"equal to one process; the largest relative difference is {worst:.1e}"


def _document(found: "Verification") -> dict[str, Any]:
    from parctl.recipes.frozen import to_json

    document: dict[str, Any] = to_json(found)
    document["equal"] = found.equal
    for part, data in zip(found.parts, document["parts"], strict=True):
        data["equal"] = part.equal
        data["worst_difference"] = part.worst
        for number, entry in zip(part.numbers, data["numbers"], strict=True):
            entry |= {"difference": number.difference, "equal": number.equal}
    return document
