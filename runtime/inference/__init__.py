"""The inference engine: paged key/value memory, continuous batching, parallel decode."""
