"""What `/metrics` tells Prometheus: calls, times to the first token and between tokens, engines."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from parctl.runtime.serving.hub import Hub

FIRST_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
GAUGES = {
    "running": "samples in memory",
    "waiting": "requests that wait for memory",
    "num_blocks": "blocks of key/value memory",
    "free_blocks": "of them, held by nobody",
}
COUNTERS = {
    "prompt_tokens": "tokens of prompts that began to be computed",
    "cached_tokens": "of them, found in the prefix cache",
    "output_tokens": "tokens made",
    "preemptions": "sequences that had to give way",
}


class Metrics:
    """One registry per front, so that tests can have several."""

    def __init__(self, hub: Hub) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls = Counter(
            "parctl_requests", "calls by path and status", ("path", "status"), registry=registry
        )
        self.under_way = Gauge("parctl_requests_under_way", "calls now", registry=registry)
        self.first = Histogram(
            "parctl_time_to_first_token_seconds", "of a call", buckets=FIRST_S, registry=registry
        )
        self.between = Histogram(
            "parctl_time_per_token_seconds",
            "between tokens of a sample",
            buckets=BETWEEN_S,
            registry=registry,
        )
        registry.register(Engines(hub))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Engines(Collector):
    """What the leaders told last."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        stats: Mapping[int, Mapping[str, Any]] = {
            number: replica.stats for number, replica in self._hub.replicas.items()
        }
        up = GaugeMetricFamily("parctl_replicas", "engines that are connected")
        up.add_metric([], len(stats))
        yield up
        families = ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily))
        for names, family in families:
            for name, meaning in names.items():
                metric = family(f"parctl_engine_{name}", meaning, labels=["replica"])
                for number, own in stats.items():
                    metric.add_metric([str(number)], own.get(name, 0))
                yield metric
