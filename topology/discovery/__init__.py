"""What runs on every node of a Kubernetes cluster: read the node, publish what was read."""
