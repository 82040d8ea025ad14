"""What is wrong with a cluster, and how wide tensor parallelism can be on it."""
