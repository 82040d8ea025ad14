"""What a cluster reaches: its collectives and matrix products, measured where a job would run."""
