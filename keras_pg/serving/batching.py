"""Requests of several clients put together into one, as TensorFlow Serving's batching does."""

import collections
import dataclasses
import threading

import numpy as np
from grpc import StatusCode

from keras_pg.serving.status import RequestError, invalid

MAX_TIMEOUT_MICROS = int(1e6 * threading.TIMEOUT_MAX)  # what a thread can wait


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """What `--batching_parameters_file` may hold.

    Args:
        max_batch_size: rows of a batch; a request of more is refused.
        batch_timeout_micros: how long a batch waits to be filled, in microseconds.
        max_enqueued_batches: batches that wait for a thread; further requests are refused.
        num_batch_threads: batches that run at once.
        allowed_batch_sizes: ascending sizes to which batches are padded, with copies of their
            first row; none pads nothing.

    Raises:
        ValueError: sizes, batches or threads that are not positive, a negative time or one that no
            thread can wait, or allowed sizes that do not ascend to `max_batch_size`.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 2
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, received {getattr(self, name)}.")
        if not 0 <= self.batch_timeout_micros <= MAX_TIMEOUT_MICROS:
            raise ValueError(
                f"batch_timeout_micros must be between 0 and {MAX_TIMEOUT_MICROS}, received "
                f"{self.batch_timeout_micros}."
            )
        sizes = [0, *self.allowed_batch_sizes]
        if len(sizes) > 1 and (sizes != sorted(set(sizes)) or sizes[-1] != self.max_batch_size):
            raise ValueError(
                "allowed_batch_sizes must be positive, ascend and end with max_batch_size "
                f"({self.max_batch_size}), received {sizes[1:]}."
            )


class _Batch:
    def __init__(self):
        self.requests = []
        self.rows = 0
        self.full = threading.Event()
        self.done = threading.Event()
        self.answers = None
        self.error = None


class Batcher:
    """Runs requests in batches; a request waits in the thread that brought it.

    The first request of a batch waits for the others, then for a free slot, during which more may
    still join, and runs the batch for all.
    """

    def __init__(self, parameters):
        self.parameters = parameters
        self._lock = threading.Lock()
        self._open = {}
        self._waiting = collections.defaultdict(set)
        self._slots = threading.Semaphore(parameters.num_batch_threads)

    def __call__(self, key, run, inputs):
        """The outputs of `run(inputs)`, which may be called with more rows than these."""
        rows = _rows(inputs)
        maximum = self.parameters.max_batch_size
        if rows > maximum:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {maximum}")
        # Only arrays that differ in nothing but their rows can be put together.
        key = (key, *((name, a.dtype.str, a.shape[1:]) for name, a in sorted(inputs.items())))
        with self._lock:
            batch = self._open.get(key)
            leads = batch is None or batch.rows + rows > maximum
            if leads:
                self._check_queue(key)
                batch = self._open[key] = _Batch()
                self._waiting[key].add(batch)
            start = batch.rows
            batch.requests.append(inputs)
            batch.rows += rows
            if batch.rows == maximum:
                batch.full.set()
        if leads:
            self._lead(key, batch, run)
        else:
            batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return {name: array[start : start + rows] for name, array in batch.answers.items()}

    def _check_queue(self, key):
        if len(self._waiting.get(key, ())) >= self.parameters.max_enqueued_batches:
            raise RequestError(
                StatusCode.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full",
            )

    def _lead(self, key, batch, run):
        try:
            if self._open.get(key) is batch:
                batch.full.wait(self.parameters.batch_timeout_micros / 1e6)
            with self._slots:
                self._close(key, batch)
                batch.answers = self._run(run, batch)
        except RequestError as error:
            batch.error = error
        except BaseException:
            batch.error = RequestError(StatusCode.INTERNAL, "The batch was not run.")
            raise
        finally:
            self._close(key, batch)  # it may have failed before its turn
            batch.done.set()

    def _close(self, key, batch):
        """Lets nobody join a batch any more, and counts it no longer among those that wait."""
        with self._lock:
            if self._open.get(key) is batch:
                del self._open[key]
            self._waiting[key].discard(batch)
            if not self._waiting[key]:
                del self._waiting[key]

    def _run(self, run, batch):
        requests = batch.requests
        if len(requests) == 1:
            inputs = requests[0]
        else:
            inputs = {k: np.concatenate([request[k] for request in requests]) for k in requests[0]}
        size = batch.rows
        if size:  # A batch without rows has none that could be copied.
            sizes = self.parameters.allowed_batch_sizes
            size = next((allowed for allowed in sizes if allowed >= batch.rows), batch.rows)
        if size > batch.rows:
            # Copies of a row: rows of zeros could make what is computed from them NaN.
            missing = size - batch.rows
            inputs = {k: np.concatenate([a, a[:1].repeat(missing, 0)]) for k, a in inputs.items()}
        outputs = run(inputs)
        for array in outputs.values():
            if array.ndim == 0:
                raise invalid("Batched output tensor has 0 dimensions")
            if len(array) != size:
                raise invalid(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                    "dimension sizes of the input tensors"
                )
        return outputs


def _rows(inputs):
    if any(array.ndim == 0 for array in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) != 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()
