"""How long a training step takes: from work on a rank, over exchanges, to the whole schedule."""
