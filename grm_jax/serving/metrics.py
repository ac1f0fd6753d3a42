"""Shows the state of a service to Prometheus, as it is when it is asked."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from grm_jax.serving.service import Service

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
OTHER = "other"  # of the paths that there are none of: a label has few values


class Metrics(Collector):
    """The registry of one service. paths: that requests are counted by."""

    def __init__(self, service: Service, paths: set[str]):
        self.service, self.paths = service, paths
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "grm_requests",
            "Requests by path and status; 0: the client left",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "grm_request_seconds",
            "Seconds of a request",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)

    def saw(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that has ended."""
        path = path if path in self.paths else OTHER
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Any]:
        """Yields what the service knows."""
        service, stats = self.service, self.service.worker.stats
        lane, cache = service.lane, service.cache
        gauges = {
            "grm_ready": ("Whether it answers", service.state == "ready"),
            "grm_samples_asked": ("Samples of requests under way", service.asked),
            "grm_samples_waiting": ("Samples that wait for a row", stats.waiting),
            "grm_queue_limit": ("Samples that may be asked for", service.settings.queue),
            "grm_rows_used": ("Decode rows in use", stats.rows_used),
            "grm_rows": ("Decode rows", stats.rows),
            "grm_members_waiting": ("Samples that wait for their groups", service.held),
        }
        for name, (about, value) in gauges.items():
            yield GaugeMetricFamily(name, about, float(value))
        counters = {
            "grm_samples": ("Samples drawn", service.drawn),
            "grm_tokens_decoded": ("Tokens written", stats.decoded),
            "grm_tokens_prefilled": ("Tokens of prompts read, each prompt once", stats.prefilled),
            "grm_replayed": ("Requests answered by their idempotency key", service.replayed),
            "grm_cache_hits": ("Verdicts out of the cache", cache.hits if cache else 0),
            "grm_cache_misses": ("Verdicts that it did not have", cache.misses if cache else 0),
            "grm_cache_errors": ("Failures of the cache", cache.errors if cache else 0),
        }
        for name, (about, value) in counters.items():
            yield CounterMetricFamily(name, about, float(value))
        failures = CounterMetricFamily("grm_failures", "Judgments without scores", labels=["name"])
        for name, count in sorted(service.failures.items()):
            failures.add_metric([name], count)
        yield failures
        refused = CounterMetricFamily("grm_refused", "Requests not taken", labels=["reason"])
        for name, count in sorted(service.refused.items()):
            refused.add_metric([name], count)
        yield refused
        weights = GaugeMetricFamily("grm_weights", "Served", labels=["model", "weights"])
        if lane is not None:
            weights.add_metric([lane.name, lane.digest], 1)
        yield weights
