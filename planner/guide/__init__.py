"""What every form of parallelism is, when to use it and what it costs: data in, words out."""
