"""What Ray and Kubernetes share: the ranks of many nodes, started, watched and judged together."""
