"""The shorthand: every term, every wrong term with its column, and round trips."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parctl.recipes.parallelism import build_parallelism, check_parallelism
from parctl.recipes.shorthand import SCHEDULES, format_form, read_form
from parctl.recipes.spec import AXES, ParallelismSpec


def read(text: str) -> ParallelismSpec:
    form = read_form(text)
    assert not form.faults, form.faults
    assert not check_parallelism(form.values)
    return build_parallelism(form.values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("DP", {"dp": "auto"}),
        ("DP4", {"dp": 4}),
        ("DDP4", {"dp": 4}),
        ("FSDP16", {"fsdp": 16}),
        ("HSDP", {"dp": "auto", "fsdp": "auto"}),
        ("HSDP2x8", {"dp": 2, "fsdp": 8}),
        ("ZERO1", {"fsdp": "auto", "zero_stage": 1}),
        ("ZERO28", {"fsdp": 8, "zero_stage": 2}),
        ("ZERO316", {"fsdp": 16, "zero_stage": 3}),
        ("TP8", {"tp": 8}),
        ("TP8+SP", {"tp": 8, "sp": True}),
        ("CP4", {"cp": 4}),
        ("CP4@ulysses", {"cp": 4, "cp_kind": "ulysses"}),
        ("CP@ring", {"cp": "auto", "cp_kind": "ring"}),
        ("EP8+ETP2", {"ep": 8, "etp": 2}),
        ("PP8", {"pp": 8}),
        ("PP8@gpipe", {"pp": 8, "schedule": "gpipe"}),
        ("PP8@interleaved-1f1b:4", {"pp": 8, "schedule": "interleaved-1f1b", "virtual_stages": 4}),
        ("PP@zbv", {"pp": "auto", "schedule": "zbv"}),
        ("LAYER4", {"pp": 4, "layer": True}),
        ("OP2", {"operator": 2}),
        ("auto", {"auto": True}),
        (" Auto ", {"auto": True}),
        ("tp8 + sp +  fsdp", {"tp": 8, "sp": True, "fsdp": "auto"}),
    ],
)
def test_a_form_reads_as_its_mapping(text: str, values: dict[str, Any]) -> None:
    form = read_form(text)
    assert (dict(form.values), form.faults) == (values, ())


@pytest.mark.parametrize(
    ("text", "offset", "says", "hint"),
    [
        ("", 0, "found nothing", "TP8+SP+FSDP"),
        ("TP8+", 4, "found nothing", "TP8+SP+FSDP"),
        ("TP8+XX", 4, "found `XX`", "terms are DP, DDP"),
        ("TP8 + FSPD", 6, "found `FSPD`", "did you mean `FSDP`?"),
        ("TP-8", 2, "found `-8` after TP", "write `TP8`"),
        ("TP=8", 2, "found `=8` after TP", "write `TP8`"),
        ("TP 8", 2, "found ` 8` after TP", "write `TP8`"),
        ("TPx", 0, "found `TPx`", "did you mean `TP`?"),
        ("TP8.5", 2, "found `8.5` after TP", "write `TP8`"),
        ("TP2 FSDP4", 2, "found `2 FSDP4` after TP", "terms are joined by `+`"),
        ("PP4:2", 2, "found `4:2` after PP", "write `PP4@interleaved-1f1b:2`"),
        ("TP0", 2, "found degree 0 of TP", "inferred"),
        ("TP1048577", 2, "found degree 1048577 of TP, expected 1 to 1,048,576", "inferred"),
        ("SP2+TP2", 2, "found `2` after SP", "CPn@ring"),
        ("DP2+DDP2", 4, "`DDP2` gives dp a second time", "name each axis once"),
        ("HSDP2x4+FSDP", 8, "`FSDP` gives fsdp a second time", "name each axis once"),
        ("PP2+LAYER2", 4, "`LAYER2` gives pp a second time", "name each axis once"),
        ("HSDP8", 4, "expected replicas x shards", "HSDP2x8"),
        ("HSDP2x0", 6, "found degree 0 of HSDP", "inferred"),
        ("ZERO", 4, "expected the stage 1, 2 or 3", "ZERO3"),
        ("ZERO4", 4, "expected the stage 1, 2 or 3", "ZERO3"),
        ("ZERO1:2", 5, "found `:2` after ZERO1", "write `ZERO12`, the degree behind the stage 1"),
        ("ZERO1+FSDP2", 6, "`FSDP2` gives fsdp a second time", "stage 1 over 8 ranks"),
        ("LAYER2@gpipe", 5, "found `2@gpipe` after LAYER", "for one write `PP`"),
        ("CP4@star", 4, "found `star`", "CP4@ring"),
        ("CP4@", 4, "found ``", "CP4@ring"),
        ("PP4@1f2b", 4, "found schedule `1f2b`", "PP4@1f1b"),
        ("PP4@zbv:", 8, "found no number after `:`", "zbv:2"),
        ("PP4@interleaved-1f1b:0", 21, "found degree 0", "inferred"),
        ("OP", 2, "OP needs its number of branches", "OP2"),
        ("TP8+auto", 4, "`auto` stands alone", "without it"),
        ("\u0422P8", 0, "expected a term", "terms are"),  # a Cyrillic letter
    ],
)
def test_a_wrong_term_is_found_at_its_column(text: str, offset: int, says: str, hint: str) -> None:
    fault = read_form(text).faults[0]
    assert fault.offset == offset
    assert says in fault.message
    assert hint in fault.hint


def test_all_wrong_terms_are_reported() -> None:
    faults = read_form("TP0+XX+ZERO9+SP").faults
    assert [fault.offset for fault in faults] == [2, 4, 11]


@pytest.mark.parametrize(
    ("values", "key", "says"),
    [
        ({"sp": True, "fsdp": 2}, "sp", "SP without TP"),
        ({"etp": 2}, "etp", "ep, is not named"),
        ({"schedule": "zbv"}, "schedule", "pp, is not named"),
        ({"tp": 2, "cp_kind": "ring"}, "cp_kind", "cp, is not named"),
        ({"tp": 2, "zero_stage": 1}, "zero_stage", "fsdp, is not named"),
        ({"pp": 4, "virtual_stages": 2}, "virtual_stages", "1f1b has 1 per rank"),
        ({"pp": 4, "schedule": "zbv", "virtual_stages": 3}, "virtual_stages", "zbv has 2"),
        ({"pp": 4, "schedule": "interleaved-1f1b", "virtual_stages": 1}, "virtual_stages",
         "at least 2"),
        ({"pp": 4, "layer": True, "schedule": "gpipe"}, "schedule", "it has no schedule"),
        ({"auto": True, "tp": 8}, "tp", "beside `auto`"),
        ({"dp": 2, "tp": 2, "order": ["dp"]}, "order", "leaves out tp"),
        ({"dp": 2, "order": ["dp", "dp"]}, "order", "names dp more than once"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(values: dict[str, Any], key: str, says: str) -> None:
    ((found, message, hint),) = check_parallelism(values)
    assert found == key
    assert says in message
    assert hint


def test_zero_stage_and_schedule_defaults() -> None:
    spec = read("PP4@interleaved-1f1b+FSDP8")
    assert (spec.zero_stage, spec.virtual_stages, spec.schedule) == (3, 2, "interleaved-1f1b")
    spec = read("DP8")
    assert (spec.zero_stage, spec.virtual_stages, spec.schedule) == (0, 1, "1f1b")
    assert (spec.tp, spec.pp, spec.cp, spec.ep, spec.etp, spec.fsdp) == (1, 1, 1, 1, 1, 1)


def test_an_axis_of_one_is_no_axis() -> None:
    assert read("TP1+SP+PP1@zbv+DP4") == read("DP4")


def test_the_order_of_terms_and_their_case_do_not_matter() -> None:
    assert read("fsdp16+sp+Tp8") == read("TP8+SP+FSDP16")
    assert read("FSDP16+SP+TP8").text == "TP8+SP+FSDP16"
    assert read("HSDP2x8") == read("DDP2+ZERO38")


def test_a_partial_order_is_completed_with_the_absent_axes_outside() -> None:
    spec = build_parallelism({"dp": 4, "pp": 4, "tp": 4, "order": ["dp", "pp", "tp"]})
    assert spec.order == ("fsdp", "cp", "operator", "dp", "pp", "tp")
    assert read("TP8").order == AXES


degrees = st.one_of(st.none(), st.integers(1, 64)).map(lambda n: "" if n is None else str(n))


@st.composite
def forms(draw: st.DrawFn) -> str:
    """Any form that the grammar allows."""
    terms = []
    axis = draw(st.sampled_from(["", "HSDP", "DP", "DDP"]))
    if axis == "HSDP":
        terms.append(draw(st.sampled_from(["HSDP", "HSDP2x8", "hsdp1X4"])))
    elif axis:
        terms.append(axis + draw(degrees))
    if axis != "HSDP":
        shard = draw(st.sampled_from(["", "FSDP", "ZERO1", "ZERO2", "zero3"]))
        terms += [shard + draw(degrees)] if shard else []
    if draw(st.booleans()):
        terms += ["TP" + draw(degrees)] + (["SP"] if draw(st.booleans()) else [])
    if draw(st.booleans()):
        terms.append("CP" + draw(degrees) + draw(st.sampled_from(["", "@ring", "@Ulysses"])))
    if draw(st.booleans()):
        terms += ["EP" + draw(degrees)] + (["ETP2"] if draw(st.booleans()) else [])
    pipeline = draw(st.sampled_from(["", "PP", "LAYER"]))
    if pipeline:
        schedule = draw(st.sampled_from(["", *(f"@{name}" for name in SCHEDULES)]))
        terms.append(pipeline + draw(degrees) + (schedule if pipeline == "PP" else ""))
    terms += [f"OP{draw(st.integers(1, 8))}"] if draw(st.booleans()) else []
    return "+".join(draw(st.permutations(terms))) or "auto"


@given(forms())
@settings(max_examples=300, deadline=None)
def test_every_form_survives_a_round_trip(text: str) -> None:
    spec = read(text)
    assert spec.text == format_form(spec)
    assert read(spec.text) == spec


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_faults_inside_it_and_never_raises(text: str) -> None:
    form = read_form(text)
    assert form.values or form.faults
    assert all(0 <= fault.offset <= len(text) and fault.hint for fault in form.faults)
