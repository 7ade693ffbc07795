"""Servers of one model, and versions of it, for tests."""

import contextlib
import time

from keras_pg import versions
from keras_pg.serving.models import Model, Models, latest
from keras_pg.serving.server import Server
from recorded_models import save_doubling

PREDICT = "/v1/models/policy:predict"
ONE = {"instances": [[1.0, 2.0]]}


@contextlib.contextmanager
def serving(base, policy=None, *, models=None, servable=None, **options):
    """A server of one model, "policy", that looks for versions often."""
    models = models or [Model("policy", base, policy or latest())]
    options = {"port": 0, "rest_api_port": 0, "poll_seconds": 0.05, **options}
    retries = {"max_num_load_retries": 1, "load_retry_interval": 0.0}
    with Server(Models(models, **retries, **(servable or {})), **options) as server:
        yield server


def eventually(condition):
    """Waits until a condition holds; half a minute is a failure."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def publish(base, factor=2.0, warmup=None):
    """Adds a version to the base directory in one step."""
    unfinished = base.parent / "unfinished"
    save_doubling(unfinished, factor, warmup)
    return versions.publish(unfinished, base)
