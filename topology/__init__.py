"""Topology: the cluster as data, its discovery, and the placement of ranks on its devices."""
