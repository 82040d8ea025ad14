"""How a block is run: recomputed, offloaded, compiled, in float8, on streams.

And which parts of torch are imported only where something is compiled or traced.
"""
