"""How a block is run: recomputed, offloaded, compiled, in float8, on streams."""
