"""The page of a plan: what is in it, that nothing breaks out of it, and that a browser shows it."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from parctl.cli.main import run
from parctl.planner.make import make_plan
from parctl.planner.page.cluster import group_numbers
from parctl.planner.page.memory import counted
from parctl.planner.page.page import plan_to_html
from parctl.planner.page.step import schedule_chart
from parctl.planner.plan import Plan
from parctl.recipes.loader import load_recipe
from parctl.topology.model import Topology
from parctl.topology.synthetic import parse_cluster

JOBS = {
    "pipeline": ("llama-70b: TP8+SP+PP4+FSDP", "h100:16x8"),
    "interleaved": ("llama-70b: TP8+SP+PP4@interleaved-1f1b:2+FSDP", "h100:16x8"),
    "experts": ("mixtral-8x7b", "h100:16x8"),
    "rack": ("llama-70b: TP8+SP+FSDP", "gb200:2x16x4"),
    "cpu": ("tiny-llama: TP2+FSDP2", "cpu:1x4"),
    "one": ("tiny-llama: DP", "h100:1x1"),
    "misfit": ("llama-70b: DP8", "h100:1x8"),
    "serve": ("llama-70b-serve", "h100:1x8"),
    "generate": ("tiny-llama-generate", "h100:1x8"),
}
# runs inside the page: errors, what is fetched, what is wider than its box, what colours say
PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message)));
addEventListener("load", () => {
  const wide = [];
  for (const box of document.querySelectorAll("section, .tile, .node, .dev"))
    if (box.scrollWidth > box.clientWidth + 1) wide.push(box.className || box.tagName);
  const picked = document.querySelector("input[name=axis]:checked");
  const colours = () => new Set([...document.querySelectorAll(".dev:not(.free)")].map(
    device => getComputedStyle(device).backgroundColor)).size;
  const chosen = colours();
  document.getElementById("axis-0").checked = true;
  const said = [...document.querySelectorAll(".said")].filter(
    line => getComputedStyle(line).display !== "none").map(line => line.textContent);
  const bars = [...document.querySelectorAll(".bar")].map(bar => [...bar.querySelectorAll(
    "span:not(.limit)")].reduce((sum, part) => sum + part.getBoundingClientRect().width, 0)
    <= bar.getBoundingClientRect().width + 1);
  const seen = {
    errors, wide, picked: picked.parentNode.textContent, chosen, first: colours(), said,
    bars: bars.length, fit: bars.every(Boolean),
    devices: document.querySelectorAll(".dev:not(.free)").length,
    paper: getComputedStyle(document.body).backgroundColor,
    loaded: performance.getEntriesByType("resource").length,
    overflow: document.documentElement.scrollWidth > innerWidth,
  };
  document.body.textContent = "PROBE" + JSON.stringify(seen) + "PROBE";
});
</script>"""


def job(name: str) -> tuple[Plan, Topology]:
    line, cluster = JOBS[name]
    topology = parse_cluster(cluster)
    return make_plan(load_recipe(line), topology), topology


def page(name: str) -> str:
    return plan_to_html(*job(name))


@pytest.mark.parametrize("name", JOBS)
def test_the_page_has_every_part_and_needs_nothing_else(name: str) -> None:
    text = page(name)

    for title in (
        "Pipeline schedule",
        "Groups on the cluster",
        "Ranks by mesh coordinates",
        "What each axis crosses",
    ):
        assert f"<h2>{title}</h2>" in text
    assert "<h2>Memory" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "<script" not in text and "@import" not in text and "url(" not in text
    assert text.count("<section>") == text.count("</section>")
    assert text == page(name)


def test_numbers_of_the_plan_are_on_the_page() -> None:
    plan, topology = job("pipeline")
    text = plan_to_html(plan, topology)

    assert "pp(4) x fsdp(4) x tp(8) = 128 ranks on 16 nodes" in text
    assert f"{plan.time['step_time_s']:.3g} s per step" in text
    assert plan.hash in text
    assert "one full NVLink mesh of one node" in text
    assert text.count('class="node"') == 16
    assert len(re.findall(r'class="dev a0g', text)) == 128
    for sentence in plan.layout.explain:
        assert re.escape(sentence[:30]).replace("\\", "") in text.replace("&#x27;", "'").replace(
            "&quot;", '"'
        )


def test_a_job_that_serves_shows_its_cache_and_how_long_tokens_take() -> None:
    plan, topology = job("serve")
    text = plan_to_html(plan, topology)
    times = plan.time["inference"]

    assert "kv_cache" in text and "How long tokens take" in text
    assert f"{times['per_token_s'] * 1e3:,.3g} ms" in text
    assert f"{times['full']['sequences']:,} requests at once" in text


def test_a_budget_is_that_of_the_tokens_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", JOBS["pipeline"][0], "--cluster", "h100:16x8", "-o", "html"]
    price = ["--set", "launch.price_per_gpu_hour=2"]
    assert run([*words, *price, "--tokens", "15T"]) == 0
    asked = capsys.readouterr().out
    plan, topology = job("pipeline")
    steps = -(-15 * 10**12 // plan.time["tokens_per_step"])
    hours = steps * plan.time["step_time_s"] / 3600 * 128

    assert f"for 15T tokens: {hours:,.0f} GPU-hours, at a cost of {2 * hours:,.0f}" in asked
    assert "for 15T tokens" not in plan_to_html(plan, topology)


def test_a_misfit_says_so() -> None:
    text = page("misfit")
    assert '<b class="bad">does not fit</b>' in text


def test_the_chart_is_that_of_the_plans_schedule() -> None:
    plan, _ = job("interleaved")
    chart = schedule_chart(plan, 4, plan.time["micro_batches_per_step"])

    assert (chart.name, chart.virtual_stages, chart.num_micro_batches) == (
        "interleaved-1f1b",
        2,
        8,
    )
    assert "interleaved-1f1b: 4 ranks of 2 stages each" in page("interleaved")


def test_devices_of_one_group_have_one_number() -> None:
    layout = job("pipeline")[0].layout
    for axis in layout.axes:
        numbers = group_numbers(layout, axis)
        for number, group in enumerate(layout.groups(axis)):
            assert {numbers[rank] for rank in group} == {number}


def test_bars_add_up_to_the_total_that_the_plan_states() -> None:
    for stage in job("pipeline")[0].memory["stages"]:
        terms = (
            "weights", "gradients", "optimizer", "gathered",
            "activations", "working", "logits", "buffers",
        )  # fmt: skip
        assert sum(counted(stage, term) for term in terms) == stage["total"]


def test_a_large_cluster_stays_one_page() -> None:
    topology = parse_cluster("h100:1250x8")
    plan = make_plan(load_recipe("llama-70b: TP8+SP+FSDP", ["train.global_batch=1250"]), topology)
    text = plan_to_html(plan, topology)

    assert len(text) < 300_000
    assert "and 1,186 more nodes, not drawn" in text


def test_tiers_and_domains_are_frames() -> None:
    plan, cluster = job("pipeline")
    nodes = tuple(
        replace(node, tiers=(f"leaf-{i // 4}", f"spine-{i // 8}"))
        for i, node in enumerate(cluster.nodes)
    )
    text = plan_to_html(plan, replace(cluster, tiers=("leaf", "spine"), nodes=nodes))

    assert text.count('class="block"') == 4 + 2
    assert page("rack").count('class="rack"') >= 1


HOSTILE = '<script>alert("x")</script>&\x00\x1b]]>'


def test_names_cannot_break_out() -> None:
    plan, cluster = job("pipeline")
    nodes = tuple(replace(node, tiers=(HOSTILE,)) for node in cluster.nodes)
    recipe = replace(plan.recipe, name=HOSTILE, source=HOSTILE)
    text = plan_to_html(
        replace(plan, recipe=recipe), replace(cluster, tiers=(HOSTILE,), nodes=nodes)
    )
    assert "<script" not in text and "\x00" not in text and "\x1b" not in text


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "tiny-llama", "--cluster", "h100:1x4", "-o", "html"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("<!doctype html>") and shown.endswith("</html>\n")


@pytest.mark.parametrize(
    ("name", "dark"),
    [("pipeline", False), ("pipeline", True), ("experts", True), ("rack", False), ("one", False)],
)
def test_a_browser_shows_the_page_without_an_error(name: str, dark: bool, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: install the Debian package `chromium`")
    (tmp_path / "page.html").write_text(page(name).replace("</body>", f"{PROBE}</body>"))
    shown = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--window-size=1300,1000",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    seen = json.loads(shown.stdout.split("PROBE")[1].replace("&amp;", "&"))

    assert told == [] and seen["errors"] == []
    assert seen["wide"] == [] and not seen["overflow"]
    assert seen["loaded"] == 0  # nothing is fetched
    assert seen["fit"] and seen["bars"] >= 1
    assert seen["paper"] == ("rgb(13, 18, 24)" if dark else "rgb(246, 248, 250)")
    if name == "pipeline":
        # 16 tp groups come in 8 colours; the 32 groups of pp too, and each choice says its proof
        assert (seen["picked"], seen["chosen"], seen["first"]) == ("tp (8)", 8, 8)
        assert seen["devices"] == 128
        assert [line.startswith("pp: 32 groups of 4") for line in seen["said"]] == [True]
