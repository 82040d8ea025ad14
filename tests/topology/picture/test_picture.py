"""The picture and the page: what is in them, for any cluster, and in a real browser."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from parctl.topology.discover import discover
from parctl.topology.model import Topology
from parctl.topology.picture.page import topology_to_html
from parctl.topology.picture.svg import topology_to_svg
from parctl.topology.synthetic import parse_cluster

ROOT = Path(__file__).resolve().parents[3]
# picture in docs/pictures -> its source, as `parctl topology --from SOURCE -o svg` reads it
PICTURES = {
    "dgx-1v": "docs/pictures/dgx-1v.yaml",
    "h100-8-nics": "h100:1x8",
    "b200-gpu2-down": "docs/pictures/b200-gpu2-down.yaml",
    "gb200-4-racks": "gb200:4x18x4",
}
SVG = "{http://www.w3.org/2000/svg}"
# runs inside the page: every drawn text must lie inside its box and inside the picture
PROBE = """<script>
addEventListener("load", () => {
  const svg = document.querySelector("svg"), page = svg.getBoundingClientRect(), out = [];
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    const body = text.parentNode.querySelector(":scope > rect");
    const frame = (body || svg).getBoundingClientRect();
    for (const edge of [frame, page])
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 2
          || box.bottom > edge.bottom + 2) { out.push(text.textContent); break; }
  }
  const gpu = svg.querySelector("g.gpu .body");
  document.body.textContent = "PROBE" + JSON.stringify({
    outside: out, gpus: svg.querySelectorAll("g.gpu:not(.key)").length,
    faulty: svg.querySelectorAll("g.faulty:not(.key)").length,
    nics: svg.querySelectorAll("g.nic > .body").length,
    fill: gpu ? getComputedStyle(gpu).fill : null, width: page.width, height: page.height,
    scripts: document.scripts.length, loaded: performance.getEntriesByType("resource").length,
  }) + "PROBE";
});
</script>"""


def classes(topology: Topology) -> Counter[str]:
    """How often each class of group is drawn, without the legend."""
    root = ElementTree.fromstring(topology_to_svg(topology))
    names = [group.get("class", "") for group in root.iter(f"{SVG}g")]
    return Counter(name for name in names if not name.startswith("key"))


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_in_the_docs_are_what_the_command_draws(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    drawn = topology_to_svg(discover(PICTURES[name]))
    again = f"parctl topology --from {PICTURES[name]} -o svg > docs/pictures/{name}.svg"
    assert (ROOT / f"docs/pictures/{name}.svg").read_text() == drawn, again


def test_a_dgx_1v_is_two_colours_and_one_arc_per_linked_pair() -> None:
    drawn = classes(parse_cluster("v100:1x8"))

    assert drawn["gpu m0"] == drawn["gpu m1"] == 4
    # 6 pairs inside each quad, and 0-4, 1-5, 2-6, 3-7 between them
    assert (drawn["links m0"], drawn["links m1"], drawn["links between"]) == (6, 6, 4)


def test_a_switched_node_is_one_bar_and_nics_have_the_colour_of_their_rail() -> None:
    drawn = classes(parse_cluster("h100:1x8"))

    assert (drawn["gpu m0"], drawn["links m0"]) == (8, 1)
    assert [drawn[f"nic r{rail}"] for rail in range(8)] == [1] * 8


def test_a_broken_gpu_is_marked_and_hangs_below_the_bar() -> None:
    broken = discover(str(ROOT / "docs/pictures/b200-gpu2-down.yaml"))
    drawn = classes(broken)

    assert (drawn["gpu m0"], drawn["gpu alone faulty"], drawn["links m0"]) == (7, 1, 1)
    assert topology_to_svg(broken).count('class="stub"') == 7
    assert "gpu 2: no NVLink, while {0-1,3-7} are joined" in topology_to_svg(broken)


def test_every_gpu_of_four_racks_is_drawn_in_the_colour_of_its_rack() -> None:
    drawn = classes(parse_cluster("gb200:4x18x4"))

    # and one node in detail
    assert [drawn[f"gpu m{rack}"] for rack in range(4)] == [72 + 4, 72, 72, 72]
    assert drawn["rack-box"] == 4


def test_cards_that_nothing_joins_have_no_link() -> None:
    drawn = classes(parse_cluster("l4:1x4"))
    assert drawn["gpu alone"] == 4 and not any(name.startswith("links") for name in drawn)


def test_tiers_are_frames_inside_frames() -> None:
    cluster = parse_cluster("h100:8x8")
    nodes = tuple(
        replace(node, tiers=(f"leaf-{i // 2}", f"spine-{i // 4}"))
        for i, node in enumerate(cluster.nodes)
    )
    drawn = classes(replace(cluster, tiers=("leaf", "spine"), nodes=nodes))
    assert drawn["block-box"] == 4 + 2


@pytest.mark.parametrize("spec", ["h100:16384x8", "gb200:1024x18x4", "cpu:1x1024", "h100:1000x8"])
def test_a_cluster_of_any_size_stays_one_page(spec: str) -> None:
    text = topology_to_svg(parse_cluster(spec))
    root = ElementTree.fromstring(text)

    assert len(text) < 400_000
    assert float(root.get("width", "")) < 1400 and float(root.get("height", "")) < 3000


def test_a_faulty_node_among_thousands_is_still_drawn() -> None:
    cluster = parse_cluster("h100:1000x8")
    hardware = cluster.nodes[0].hardware
    first, *rest = hardware.devices
    sick = replace(hardware, devices=(replace(first, faults=("lost",)), *rest))
    nodes = (*cluster.nodes[:500], replace(cluster.nodes[500], hardware=sick), *cluster.nodes[501:])

    assert "gpu m0 faulty" in classes(replace(cluster, nodes=nodes))


HOSTILE = '<script>alert("x")</script>&\x00\x1b[31m]]>\ud800 ' + "long " * 50


@pytest.mark.parametrize("draw", [topology_to_svg, topology_to_html])
def test_names_cannot_break_out(draw: object) -> None:
    cluster = parse_cluster("h100:1x2")
    hardware = cluster.nodes[0].hardware
    devices = tuple(
        replace(d, product=HOSTILE, pci=HOSTILE, faults=(HOSTILE,)) for d in hardware.devices
    )
    nics = tuple(replace(nic, name=HOSTILE) for nic in hardware.nics)
    evil = replace(hardware, devices=devices, nics=nics)
    node = replace(cluster.nodes[0], name=HOSTILE, domain=HOSTILE, tiers=(HOSTILE,), hardware=evil)
    topology = replace(
        cluster, name=HOSTILE, source=HOSTILE, tiers=(HOSTILE,), nodes=(node,), unknown=(HOSTILE,)
    )
    text = draw(topology)  # type: ignore[operator]

    assert "<script" not in text and "\x00" not in text and "\x1b" not in text
    text.encode()  # no half characters
    if text.startswith("<svg"):
        ElementTree.fromstring(text)


def test_nodes_without_any_device_are_drawn() -> None:
    cluster = parse_cluster("h100:2x8")
    empty = replace(cluster.nodes[0].hardware, devices=(), matrix=(), nics=(), nic_matrix=())
    text = topology_to_svg(
        replace(cluster, nodes=tuple(replace(n, hardware=empty) for n in cluster.nodes))
    )
    assert "node-1" in text


def test_the_page_answers_for_every_tp_size_and_lists_what_is_wrong() -> None:
    page = topology_to_html(discover(str(ROOT / "docs/pictures/b200-gpu2-down.yaml")))

    assert [int(n) for n in re.findall(r"<tr><td>(\d+)</td>", page)] == [2, 3, 4, 5, 6, 7, 8]
    assert "b200-07: gpu 2: no NVLink, while {0-1,3-7} are joined" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


@pytest.mark.parametrize(
    ("source", "gpus", "faulty", "nics"),
    [
        ("docs/pictures/dgx-1v.yaml", 8, 0, 4),
        ("h100:1x8", 8, 0, 8),
        ("docs/pictures/b200-gpu2-down.yaml", 8, 1, 9),
        ("gb200:4x18x4", 292, 0, 4),
    ],
)
def test_a_browser_shows_the_page_with_every_text_in_its_box(
    source: str,
    gpus: int,
    faulty: int,
    nics: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser: install the Debian package `chromium`")
    monkeypatch.chdir(ROOT)
    page = topology_to_html(discover(source))
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{PROBE}</body>"))
    shown = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1400,1000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seen = json.loads(shown.stdout.split("PROBE")[1].replace("&amp;", "&"))

    assert seen["outside"] == []
    assert (seen["gpus"], seen["faulty"], seen["nics"]) == (gpus, faulty, nics)
    assert seen["fill"] == "rgba(0, 114, 178, 0.2)"  # the style sheet inside the picture holds
    assert seen["width"] > 600 and seen["height"] > 200
    assert seen["loaded"] == 0  # nothing is fetched
