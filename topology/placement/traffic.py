"""Bytes that one rank sends per step on each axis, for a nominal transformer.

The planner knows the model and passes its own numbers; these weigh the axes when nobody does
(`task: script`). They are the textbook volumes for 32 layers of width 4096 with 1024 of keys and
values (7 x 10^9 parameters in bf16), 8192 tokens per micro-batch and 8 micro-batches::

    tp    8 layers m T h e (n-1)/n          all-reduce twice forward, twice backward
    ep    4 layers m T h e top_k (n-1)/n    dispatch and combine, forward and backward
    cp    6 layers m T kv e (n-1)           ring of keys and values, gradients back
    operator  4 layers m T h e (n-1)/n      all-reduce once forward, once backward
    fsdp  3 m P e (n-1)/n                   gather twice, scatter once per micro-batch
    dp    4 P e (n-1)/n                     all-reduce of fp32 gradients once per step
    pp    2 m T h e                         activations forward, gradients backward
"""

from collections.abc import Mapping

LAYERS = 32
WIDTH = 4096
KEYS_AND_VALUES = 2 * 1024
PARAMETERS = 7e9
TOKENS = 8192
MICRO_BATCHES = 8
TOP_K = 2
BYTES = 2  # bf16


def nominal_traffic(axes: Mapping[str, int], ep: int = 1) -> dict[str, float]:
    """Bytes per step and rank by axis; an axis that the formulas do not know counts as `dp`.

    >>> nominal_traffic({"pp": 2, "tp": 2})["pp"] == 2 * 8 * 8192 * 4096 * 2
    True
    """
    tp, pp, cp = axes.get("tp", 1), axes.get("pp", 1), axes.get("cp", 1)
    layers = LAYERS / pp
    activations = MICRO_BATCHES * TOKENS / cp * WIDTH * BYTES
    parameters = PARAMETERS / (tp * pp) * BYTES
    volumes = {
        "tp": 8 * layers * activations,
        "cp": 6 * layers * MICRO_BATCHES * TOKENS * KEYS_AND_VALUES / tp * BYTES,
        "operator": 4 * layers * activations,
        "fsdp": 3 * MICRO_BATCHES * parameters,
        "dp": 4 * parameters / axes.get("fsdp", 1),
        "pp": 2 * activations,
    }
    traffic = {
        axis: volumes.get(axis, volumes["dp"]) * (1.0 if axis == "pp" else (size - 1) / size)
        for axis, size in axes.items()
        if size > 1
    }
    if ep > 1:
        traffic["ep"] = 4 * layers * activations * TOP_K * (ep - 1) / ep
    return traffic
