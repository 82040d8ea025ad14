"""Search for the fastest way to run a job on a cluster: the space, the bounds, the reasons."""
