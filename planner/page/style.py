"""How the page looks: one set of colours for light and one for dark, nothing from elsewhere.

Colours carry no meaning that letters and numbers do not carry too. The eight are Okabe and Ito's,
which people with any colour vision can tell apart; dark mode takes lighter ones of the same hues.
"""

LIGHT = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#6a51a3")
DARK = ("#3d9bdc", "#f0b43c", "#2fbf94", "#e094c0", "#7cc8f2", "#f0803c", "#d4c63a", "#9d86d8")
NUM_COLOURS = len(LIGHT)
ON_LIGHT = ("#fff", "#2b1d00", "#04281c", "#2b0d20", "#04121c", "#fff", "#201d00", "#fff")  # text


def _variables(fill: tuple[str, ...], text: tuple[str, ...]) -> str:
    pairs = zip(fill, text, strict=True)
    return "".join(f"--c{i}:{colour};--o{i}:{on};" for i, (colour, on) in enumerate(pairs))


_LIGHT = _variables(LIGHT, ON_LIGHT)
_DARK = _variables(DARK, ("#0b1116",) * NUM_COLOURS)

STYLE = (
    ":root{color-scheme:light dark;--paper:#f6f8fa;--card:#fff;--ink:#1f2933;--dim:#52606d;"
    "--line:#d9e2ec;--lane:#eef2f6;--good:#00663d;--bad:#b00020;--frame:#cbd2d9;"
    "--F:#0072b2;--B:#009e73;--I:#009e73;--W:#e69f00;--on-F:#fff;--on-B:#04281c;--on-W:#2b1d00;"
    f"{_LIGHT}}}\n"
    "@media (prefers-color-scheme:dark){:root{--paper:#0d1218;--card:#151c24;--ink:#e4e9ee;"
    "--dim:#9fb0c0;--line:#2a3642;--lane:#1f2933;--good:#4fd19b;--bad:#ff7b8a;--frame:#3b4a58;"
    f"--F:#3d9bdc;--B:#2fbf94;--I:#2fbf94;--W:#e8ad2e;--on-F:#04121c;{_DARK}}}}}\n"
    + """
*{box-sizing:border-box}
body{font:15px/1.5 ui-sans-serif,system-ui,"DejaVu Sans",Arial,sans-serif;color:var(--ink);
background:var(--paper);max-width:1280px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 2px;overflow-wrap:anywhere}h2{font-size:17px;margin:0 0 10px}
p{margin:6px 0}.dim{color:var(--dim)}.small{font-size:13px}
code{font:13px ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;
margin:16px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;
margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:21px;line-height:1.3}.tile span{color:var(--dim);font-size:13px}
.good{color:var(--good)}.bad{color:var(--bad)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px}
th,td{text-align:left;padding:4px 16px 4px 0;border-bottom:1px solid var(--line);
vertical-align:top}
th{font-weight:600;color:var(--dim);white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;font-size:13px}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;
vertical-align:-1px}
.bars{display:grid;grid-template-columns:max-content 1fr max-content;gap:7px 12px;
align-items:center;font-size:13px}
.bar{position:relative;display:flex;height:22px;background:var(--lane);border-radius:4px}
.bar>span{height:100%}.bar>span:first-child{border-radius:4px 0 0 4px}
.limit{position:absolute;top:-4px;bottom:-4px;border-left:2px dashed var(--ink)}
.grid td,.grid th{text-align:center;padding:2px 9px;font-size:13px;
font-variant-numeric:tabular-nums}.grid th{text-align:left}
.axes{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 6px}
.axes label{border:1px solid var(--line);border-radius:999px;padding:3px 14px;cursor:pointer;
font-size:14px}
.axes label:has(:checked){background:var(--ink);color:var(--card);border-color:var(--ink)}
.axes label:has(:focus-visible){outline:2px solid var(--c0);outline-offset:2px}
.axes input{position:absolute;opacity:0;pointer-events:none}
.said{display:none;margin:6px 0 12px}
.cluster{display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start}
.block,.rack{display:flex;flex-wrap:wrap;gap:10px;border:1px solid var(--frame);
border-radius:8px;padding:8px 10px}
.rack{border-width:2px}
.block>h3,.rack>h3{flex-basis:100%;font-size:12px;margin:0;font-weight:600;color:var(--dim)}
.node{border:1px solid var(--frame);border-radius:6px;padding:6px 8px}
.node>h3{font-size:12px;margin:0 0 4px;font-weight:600;overflow-wrap:anywhere}
.devices{display:grid;gap:3px}
.dev{min-width:30px;height:24px;border-radius:4px;font-size:11px;line-height:24px;
text-align:center;padding:0 3px;font-variant-numeric:tabular-nums}
.dev.free{border:1px dashed var(--frame);color:var(--dim)}
svg.chart{max-width:100%;height:auto;display:block}
.chart text{font-family:inherit;fill:var(--ink)}
ul{margin:0;padding-left:20px}li{margin:3px 0}
footer{color:var(--dim);font-size:13px;margin:18px 0}
@media print{section,.tile{break-inside:avoid}}
"""
    + "".join(f".k{i}{{background:var(--c{i})}}" for i in range(NUM_COLOURS))
    + "\n"
)
