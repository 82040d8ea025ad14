"""Topology: the cluster as data, where it is discovered, and the placement of ranks on its devices."""
