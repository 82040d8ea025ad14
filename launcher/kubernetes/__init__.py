"""Runs on Kubernetes: a plan as JobSet, Job, RayJob or LeaderWorkerSet, and all that follows."""
