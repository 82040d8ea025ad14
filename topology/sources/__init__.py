"""One module per format that clusters are described in: text in, `Topology` out.

Each has `looks_like(text)` and `read_text(text, name)`; `parctl.topology.discover` tries them in a
fixed order. What a format does not say stays unknown.
"""
