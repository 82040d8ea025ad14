"""Planner: degrees, memory and time of a recipe on a topology, gathered in one plan."""
