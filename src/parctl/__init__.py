"""parctl: from a parallelism recipe and a real cluster to a running job.

The calls a notebook needs, in the order the command line makes them::

    import parctl

    recipe = parctl.load("tiny-llama")
    plan = parctl.plan(recipe)                      # this machine
    plan = parctl.plan(recipe, cluster="h100:2x8")  # or any cluster, real or imagined
    run = parctl.launch(plan)
    run.wait()

Nothing is imported until it is used: `import parctl` costs no more than this file.
"""

from importlib import import_module

from parctl._version import __version__

TYPE_CHECKING = False  # as in `typing`, which nothing needs yet
if TYPE_CHECKING:
    from typing import Any

    from parctl.api import Run, launch, load, plan

__all__ = ["Run", "__version__", "launch", "load", "plan"]


def __getattr__(name: str) -> "Any":
    if name in __all__:
        return getattr(import_module("parctl.api"), name)
    raise AttributeError(f"module 'parctl' has no attribute {name!r}")
