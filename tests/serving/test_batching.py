"""Requests put together, and the parameters of that."""

import concurrent.futures
import contextlib
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from clients import predict_request, stubs
from keras_pg.serving import config
from keras_pg.serving.batching import MAX_TIMEOUT_MICROS, Batcher, BatchingParameters
from keras_pg.serving.status import RequestError
from servers import eventually, serving


def test_batches_give_every_request_its_own_rows(base):
    parameters = BatchingParameters(
        max_batch_size=16,
        batch_timeout_micros=20_000,
        max_enqueued_batches=100,
        num_batch_threads=1,
        allowed_batch_sizes=(4, 8, 16),
    )
    with serving(base, servable={"batching": parameters}) as server, stubs(server) as (service, _):

        def ask(i):
            x = np.full((1 + i % 5, 2), i, np.float32)
            answer = service.Predict(predict_request("policy", x=x), timeout=30)
            return np.array_equal(tf.make_ndarray(answer.outputs["y"]), 2 * x)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(300)))


def test_requests_that_wait_are_run_together_padded_with_rows_of_their_own():
    sizes, gate = [], threading.Event()

    def run(inputs):
        gate.wait(10)
        sizes.append(inputs["x"][:, 0].tolist())
        return {"y": inputs["x"] + 1}

    batcher = Batcher(
        BatchingParameters(max_batch_size=4, num_batch_threads=1, allowed_batch_sizes=(1, 4))
    )
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = []
        for i in range(4):
            futures.append(pool.submit(batcher, "key", run, {"x": np.full((1, 1), i)}))
            time.sleep(0.1)
        gate.set()
        assert [int(f.result()["y"][0, 0]) for f in futures] == [1, 2, 3, 4]
    assert sizes == [[0], [1, 2, 3, 1]]
    assert batcher("key", run, {"x": np.zeros((0, 1))})["y"].shape == (0, 1)


def test_a_full_queue_is_unavailable():
    gate = threading.Event()

    def run(inputs):
        gate.wait(10)
        return inputs

    parameters = BatchingParameters(max_batch_size=1, num_batch_threads=1, max_enqueued_batches=1)
    batcher = Batcher(parameters)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = []
        for _ in range(2):
            futures.append(pool.submit(batcher, "key", run, {"x": np.zeros((1, 1))}))
            time.sleep(0.1)
        with pytest.raises(RequestError, match="queue to which this task was submitted is full"):
            batcher("key", run, {"x": np.zeros((1, 1))})
        gate.set()
        for future in futures:
            future.result()


def test_a_leader_that_fails_before_its_turn_leaves_no_follower_waiting():
    entered, gate = threading.Event(), threading.Event()

    class Slots(contextlib.AbstractContextManager):
        def __enter__(self):
            entered.set()
            gate.wait(10)
            raise MemoryError

        __exit__ = None

    batcher = Batcher(BatchingParameters())
    slots, batcher._slots = batcher._slots, Slots()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leader = pool.submit(batcher, "key", dict, {"x": np.zeros(1)})
        assert entered.wait(10)
        follower = pool.submit(batcher, "key", dict, {"x": np.zeros(1)})
        eventually(lambda: [batch.rows for batch in batcher._open.values()] == [2])
        gate.set()
        with pytest.raises(MemoryError):
            leader.result(10)
        with pytest.raises(RequestError, match="The batch was not run"):
            follower.result(10)
    batcher._slots = slots
    assert batcher("key", dict, {"x": np.zeros(1)})["x"].tolist() == [0.0]
    assert not batcher._waiting


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1, received 0"),
        ("max_enqueued_batches {}", "max_enqueued_batches must be at least 1, received 0"),
        ("num_batch_threads { value: -2 }", "num_batch_threads must be at least 1, received -2"),
        ("batch_timeout_micros { value: -1 }", r"must be between 0 and \d+, received -1"),
        (f"batch_timeout_micros {{ value: {2**62} }}", rf"between 0 and \d+, received {2**62}"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [0, 8]",
            r"must be positive, ascend and end with max_batch_size \(8\), received \[0, 8\]",
        ),
    ],
)
def test_batching_parameters_that_would_let_no_request_through_are_refused(text, message, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        config.read_batching(file)


def test_a_batch_may_wait_as_long_as_a_thread_can():
    batcher = Batcher(BatchingParameters(max_batch_size=2, batch_timeout_micros=MAX_TIMEOUT_MICROS))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher, "key", dict, {"x": np.full(1, i)}) for i in range(2)]
        assert [future.result(10)["x"].tolist() for future in futures] == [[0], [1]]


@pytest.mark.parametrize(
    "text",
    [
        "pad_variable_length_inputs: true",
        "enable_large_batch_splitting { value: true }",
        "max_execution_batch_size { value: 16 }",
    ],
)
def test_batching_that_only_tensorflow_serving_does_is_refused(text, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{text.split()[0].rstrip(':')} is TensorFlow Serving's"):
        config.read_batching(file)
    file.write_text(text.replace("true", "false").replace("16", "0"))
    assert config.read_batching(file) == BatchingParameters()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.float32(1)}, "input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "must have equal 0th-dimension size"),
        ({"x": np.zeros(9)}, "Task size 9 is larger than maximum input batch size 8"),
    ],
)
def test_what_cannot_be_batched_is_refused(inputs, message):
    with pytest.raises(RequestError, match=message):
        Batcher(BatchingParameters(max_batch_size=8))("key", dict, inputs)


def test_outputs_without_a_row_for_each_input_are_refused():
    batcher = Batcher(BatchingParameters())
    for output, message in ((np.float32(1), "0 dimensions"), (np.zeros(1), "does not equal the s")):
        with pytest.raises(RequestError, match=message):
            batcher("key", lambda inputs, output=output: {"y": output}, {"x": np.zeros(2)})
