"""Placement: ranks onto devices, under hard rules, at the least cost that can be proven.

`lay_out` is the whole of it; `engine` tells how the modules here share the work.
"""

from parctl.topology.placement.engine import largest_tp, lay_out
from parctl.topology.placement.request import LayoutRequest

__all__ = ["LayoutRequest", "largest_tp", "lay_out"]
