"""What Prometheus reads of a server at /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServerMetrics:
    """Count what a replica does.

    Args:
        num_running: returns how many texts are continued now.
        num_waiting: returns how many wait for it.
    """

    def __init__(self, num_running: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("rcdist_requests", "Requests, by HTTP status", ["status"], registry=registry)
        self.prompt_tokens = Counter("rcdist_prompt_tokens", "Tokens of prompts", registry=registry)
        self.made_tokens = Counter("rcdist_made_tokens", "Tokens made", registry=registry)
        self.first_token = Histogram(
            "rcdist_first_token_seconds", "From a request to its first text", buckets=_SECONDS, registry=registry
        )
        self.duration = Histogram(
            "rcdist_request_seconds", "From a request to its end", buckets=_SECONDS, registry=registry
        )
        Gauge("rcdist_running_texts", "Texts that are continued now", registry=registry).set_function(num_running)
        Gauge("rcdist_waiting_texts", "Texts that wait for a slot", registry=registry).set_function(num_waiting)

    def count_request(self, status: int) -> None:
        """Count a request that was answered with a status of HTTP."""
        self.requests.labels(str(status)).inc()

    def expose(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
