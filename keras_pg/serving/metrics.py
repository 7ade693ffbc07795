"""Prometheus metrics, under TensorFlow Serving's names."""

import contextlib
import threading
import time

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from keras_pg.serving.status import RequestError

# Microseconds; TensorFlow Serving's own buckets are powers of 1.8 from 10 on.
_BUCKETS = [10 * 1.8**i for i in range(33)]


class Metrics:
    """Counts and times requests.

    `:tensorflow:serving:request_count{model_name, status}` counts predict requests, and
    `:tensorflow:serving:request_latency{model_name, API, entrypoint}` is a histogram of their
    microseconds, from the body read to the body written; `API` is Predict, Classify or Regress, and
    `entrypoint` REST or GRPC. `model_name` is empty where no model of that name is configured.

    Args:
        models: `Models`.
    """

    def __init__(self, models):
        self._models = models
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) of requests.",
            ("model_name", "API", "entrypoint"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._count = _RequestCount()
        self._registry.register(self._count)

    @contextlib.contextmanager
    def request(self, model_name, entrypoint, api):
        """Counts what is done within as one request, failed if it raises."""
        # A metric for every name that somebody makes up would fill the memory.
        model_name = model_name if model_name in self._models.names() else ""
        start = time.perf_counter()
        status = "OK"
        try:
            yield
        except RequestError as error:
            status = error.code.name
            raise
        except BaseException:
            status = "INTERNAL"
            raise
        finally:
            self._count.add(model_name, status)
            microseconds = 1e6 * (time.perf_counter() - start)
            self._latency.labels(model_name, api, entrypoint).observe(microseconds)

    def text(self):
        """All of it in Prometheus's text format, as bytes."""
        return generate_latest(self._registry)


class _RequestCount(Collector):
    """A counter without the suffix "_total", which TensorFlow Serving's names have not."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = {}

    def add(self, *labels):
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self):
        name = ":tensorflow:serving:request_count"
        metric = Metric(name, "The total number of requests.", "unknown")
        with self._lock:
            for (model_name, status), count in self._counts.items():
                metric.add_sample(name, {"model_name": model_name, "status": status}, count)
        yield metric
