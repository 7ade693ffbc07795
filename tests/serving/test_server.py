"""Versions that come, go and fail; batching; limits; metrics; clients that nobody here wrote."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import ovmsclient
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import get_model_metadata_pb2, model_management_pb2, predict_pb2

from clients import free_port, predict_request, rest, states, stubs
from keras_pg import versions
from keras_pg.serving import config
from keras_pg.serving.batching import BatchingParameters
from keras_pg.serving.models import Model, Models, every, latest, newest_and_labelled
from keras_pg.serving.server import Server
from policies import raw_observations
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


@pytest.fixture
def base(tmp_path):
    """A base directory whose version 1 doubles."""
    save_doubling(tmp_path / "policy" / "1")
    return tmp_path / "policy"


# ------------------------------------------------------------------------------------- versions


def test_a_new_version_takes_over_and_the_old_one_ends(base):
    with serving(base) as server:
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        publish(base, factor=3.0)
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        status, answer = rest(server, "/v1/models/policy/versions/1:predict", ONE)
        assert status == 404
        assert answer == {"error": "Servable not found for request: Specific(policy, 1)"}


def publish(base, factor=2.0, warmup=None):
    """Adds a version to the base directory in one step."""
    unfinished = base.parent / "unfinished"
    save_doubling(unfinished, factor, warmup)
    return versions.publish(unfinished, base)


def test_a_swap_under_load_drops_no_request_and_mixes_no_versions(base):
    rows = {"instances": [[1.0, 2.0]] * 16}
    answers, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answers.append(rest(server, PREDICT, rows))

    with serving(base) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(keep_asking) for _ in range(4)]
        for version in range(2, 6):
            publish(base, factor=float(version))
            eventually(lambda version=version: states(server).get(version) == "AVAILABLE")
        stop.set()
        for client in clients:
            client.result()
    assert {status for status, _ in answers} == {200}
    factors = set()
    for _, answer in answers:
        (row,) = {tuple(row) for row in answer["predictions"]}
        factors.add(row[0])
        assert row[1] == 2 * row[0]
    assert factors <= {2.0, 3.0, 4.0, 5.0} and len(factors) > 1


def test_a_corrupt_version_leaves_the_old_one_serving_and_says_why(base):
    with serving(base) as server:
        version = base / "2"
        shutil.copytree(base / "1", base.parent / "copy")
        (base.parent / "copy" / "saved_model.pb").write_bytes(b"\x00 no protobuf")
        os.rename(base.parent / "copy", version)
        eventually(lambda: states(server).get(2) == "END")
        assert states(server) == {2: "END", 1: "AVAILABLE"}
        _, answer = rest(server, "/v1/models/policy/versions/2")
        (entry,) = answer["model_version_status"]
        assert entry["status"]["error_code"] != "OK"
        assert "saved_model.pb" in entry["status"]["error_message"]
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        publish(base, factor=5.0)
        eventually(lambda: states(server).get(3) == "AVAILABLE")
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[5.0, 10.0]]})


def test_a_version_with_a_failing_warmup_is_not_served(base):
    with serving(base) as server:
        publish(base, warmup="no_such_signature")
        eventually(lambda: states(server).get(2) == "END")
        _, answer = rest(server, "/v1/models/policy/versions/2")
        message = answer["model_version_status"][0]["status"]["error_message"]
        assert message == 'Serving signature key "no_such_signature" not found.'
        assert rest(server, PREDICT, ONE)[0] == 200
    with serving(base, servable={"warm_up": False}) as server:
        assert states(server) == {2: "AVAILABLE"}


def test_names_that_are_no_numbers_are_no_versions(base):
    for name in ("1a", ".writing-x", "tmp_2"):
        shutil.copytree(base / "1", base / name)
    (base / "7").write_text("a file")
    with serving(base, every) as server:
        assert states(server) == {1: "AVAILABLE"}


def test_when_all_versions_go_none_is_served(base):
    with serving(base) as server:
        os.rename(base / "1", base.parent / "gone")
        eventually(lambda: states(server) == {1: "END"})
        assert rest(server, PREDICT, ONE) == (
            404,
            {"error": "Servable not found for request: Latest(policy)"},
        )
        os.rename(base.parent / "gone", base / "1")
        eventually(lambda: states(server) == {1: "AVAILABLE"})
        assert rest(server, PREDICT, ONE)[0] == 200


def test_labels_of_exports_are_served_and_moved(base):
    publish(base, factor=3.0)
    versions.label(base, base / "1", ["stable"])
    stable = "/v1/models/policy/labels/stable:predict"
    polls = Polls()
    with serving(base, newest_and_labelled, before_poll=polls) as server:
        assert states(server) == {2: "AVAILABLE", 1: "AVAILABLE"}
        assert rest(server, stable, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        versions.label(base, base / "2", ["stable"])
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        versions.label(base, base / "7", ["stable"])  # no such version: the label stays
        polls.wait()
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        (base / versions.LABELS).write_text("{")  # half written: the server goes on as it was
        polls.wait()
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})


def test_a_base_directory_that_is_away_for_a_moment_takes_nothing_down(base):
    polls = Polls()
    with serving(base, before_poll=polls) as server:
        os.rename(base, base.parent / "away")
        polls.wait()
        assert rest(server, PREDICT, ONE)[0] == 200
        os.rename(base.parent / "away", base)
        publish(base, factor=3.0)
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})


class Polls:
    """Counts the looks for new versions."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1

    def wait(self):
        """Until a look has begun and ended."""
        before = self.count
        eventually(lambda: self.count >= before + 3)


def test_a_failed_version_is_tried_again_once_it_has_been_replaced(base):
    with serving(base) as server:
        (base / "2").mkdir()
        eventually(lambda: states(server).get(2) == "END")
        (base / "2").rmdir()
        eventually(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
        polled = Polls()
        server._before_poll = polled
        polled.wait()
        publish(base, factor=3.0)
        eventually(lambda: states(server).get(2) == "AVAILABLE")


def test_a_warmup_of_garbage_fails_its_version_and_no_other(base, tmp_path):
    save_doubling(tmp_path / "other" / "1")
    (tmp_path / "other" / "1" / "assets.extra").mkdir()
    path = tmp_path / "other" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xff")
    models = [Model("other", tmp_path / "other", latest()), Model("policy", base, latest())]
    retries = {"max_num_load_retries": 0, "load_retry_interval": 0.0}
    loaded = Models(models, **retries)
    loaded.poll()
    assert loaded.given_up().keys() == {"other"}
    ((_, _, error),) = loaded.status("other")
    assert error.code == grpc.StatusCode.DATA_LOSS and "no PredictionLog" in error.message
    assert loaded.find("policy")[0] == 1


def test_no_request_falls_between_two_versions(base, monkeypatch):
    from keras_pg.serving import models

    class Instant:
        def __init__(self, path):
            self.number = int(path.name)

    monkeypatch.setattr(models, "Servable", Instant)
    served = Models([Model("policy", base, newest_and_labelled)])
    versions.label(base, base / "1", ["stable"])
    served.poll()
    stop = threading.Event()

    def keep_finding():
        count = 0
        while not stop.is_set():
            for label in (None, "stable"):
                version, servable = served.find("policy", label=label)
                assert servable.number == version
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(keep_finding) for _ in range(4)]
        for number in range(2, 12):
            (base / str(number)).mkdir()
            versions.label(base, base / str(number), ["stable"])
            served.poll()
        stop.set()
        assert all(reader.result() > 0 for reader in readers)


def test_a_refused_request_is_not_kept_by_its_error(tmp_path):
    from keras_pg.serving.servable import Servable
    from keras_pg.serving.status import RequestError

    module = tf.Module()
    compiled = tf.function(tf.tanh, jit_compile=True)
    module.f = tf.function(
        lambda x: {"y": compiled(x)}, input_signature=[tf.TensorSpec([None], tf.float32, "x")]
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.f})
    servable = Servable(tmp_path)
    for _ in range(2):
        with pytest.raises(RequestError, match="XLA compilation disabled"):
            servable.predict("", {"x": np.zeros(1, np.float32)})
    assert servable._errors["serving_default"].__traceback__ is None


def test_an_empty_configuration_changes_nothing(base, tmp_path):
    file = tmp_path / "models.config"
    file.write_text("")
    with pytest.raises(ValueError, match="has no model_config_list"):
        config.read_models(file)
    with serving(base) as server, stubs(server) as (_, models):
        empty = model_management_pb2.ReloadConfigRequest()
        assert models.HandleReloadConfigRequest(empty, timeout=30).status.error_code == 0
        assert states(server) == {1: "AVAILABLE"}


def test_without_a_poll_interval_versions_are_looked_for_once(base):
    with serving(base, poll_seconds=0) as server:
        assert len(server._threads) == 1 and states(server) == {1: "AVAILABLE"}


def test_a_model_that_cannot_start_ends_the_server(base):
    (base / "1" / "saved_model.pb").write_bytes(b"")
    with (
        pytest.raises(RuntimeError, match=r"1 servable\(s\) did not become available: .*policy"),
        serving(base),
    ):
        pass


def test_configuration_by_rpc(base):
    publish(base, factor=3.0)
    with serving(base) as server, stubs(server) as (prediction, models):
        request = model_management_pb2.ReloadConfigRequest()
        entry = request.config.model_config_list.config.add(name="other", base_path=str(base))
        entry.model_version_policy.specific.versions.append(1)
        entry.version_labels["stable"] = 1
        assert models.HandleReloadConfigRequest(request, timeout=30).status.error_code == 0
        answer = prediction.Predict(predict_request("other", x=np.float32([[1, 2]])), timeout=30)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2.0, 4.0]]
        with pytest.raises(grpc.RpcError) as error:
            prediction.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=30)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        entry.base_path = "relative"
        status = models.HandleReloadConfigRequest(request, timeout=30).status
        assert status.error_code == 3 and "absolute path" in status.error_message
        assert states(server, "other") == {1: "AVAILABLE"}


# --------------------------------------------------------------------------- the command line


@contextlib.contextmanager
def command(*arguments, ports=None):
    """A `keras-pg serve` process, as an object with ports; killed if it does not end by itself."""
    grpc_port, rest_port = ports or (free_port(), free_port())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "keras_pg", "serve", *map(str, arguments)),
            *(f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.port, process.rest_api_port = grpc_port, rest_port
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="it is asked with curl")
def test_the_command_serves_a_configuration_file_and_after_a_kill_serves_again(base, tmp_path):
    publish(base, factor=3.0)
    file = tmp_path / "models.config"
    text = (
        'model_config_list {{ config {{ name: "policy" base_path: "{}" model_platform: "tensorflow"'
        ' model_version_policy {{ all {{}} }} version_labels {{ key: "stable" value: {} }} }} }}'
    )
    file.write_text(text.format(base, 1))
    monitoring = tmp_path / "monitoring.config"
    monitoring.write_text('prometheus_config { enable: true, path: "/metrics" }')
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 8 } batch_timeout_micros { value: 0 }")
    flags = [
        f"--model_config_file={file}",
        "--model_config_file_poll_wait_seconds=0.1",
        "--file_system_poll_wait_seconds=0.1",
        f"--monitoring_config_file={monitoring}",
        "--enable_batching=true",
        f"--batching_parameters_file={batching}",
    ]
    ports = free_port(), free_port()
    with command(*flags, ports=ports) as server:
        address = f"http://127.0.0.1:{server.rest_api_port}/v1/models/policy"
        assert server.stdout.readline() == f"REST  {address}\n"
        assert server.stdout.readline() == f"gRPC  127.0.0.1:{server.port}, model policy\n"

        def curl(*arguments):
            run = subprocess.run(["curl", "-s", *arguments], capture_output=True, check=True)
            return run.stdout.decode()

        body = ["-d", json.dumps(ONE)]
        assert json.loads(curl(*body, f"{address}:predict")) == {"predictions": [[3.0, 6.0]]}
        stable = f"{address}/labels/stable:predict"
        assert json.loads(curl(*body, stable)) == {"predictions": [[2.0, 4.0]]}
        file.write_text(text.format(base, 2))
        eventually(lambda: json.loads(curl(*body, stable)) == {"predictions": [[3.0, 6.0]]})
        metrics = curl(f"http://127.0.0.1:{server.rest_api_port}/metrics")
        assert ':tensorflow:serving:request_count{model_name="policy",status="OK"}' in metrics
        many = json.dumps({"instances": [[1.0, 2.0]] * 9})
        assert "Task size 9 is larger than maximum input batch size 8" in curl(
            "-d", many, f"{address}:predict"
        )
        server.kill()
    # After that the same ports serve again, until they are asked to stop.
    with command(base, ports=ports) as server:
        assert server.stdout.readline().startswith("REST")
        assert server.stdout.readline().startswith("gRPC")
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        server.send_signal(signal.SIGTERM)
        output, errors = server.communicate(timeout=30)
        assert server.returncode == 0 and output == "" and "Traceback" not in errors


def test_it_can_be_stopped_while_it_waits_for_a_version(tmp_path, caplog):
    from keras_pg import cli

    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        assert cli.main(["serve", str(tmp_path), "--port=0", "--rest_api_port=0"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "Waiting for models" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give one of BASE, --model_base_path and --model_config_file"),
        (["a", "--model_base_path=b"], "Give one of BASE"),
        (["a", "--batching_parameters_file=b"], "--batching_parameters_file needs --enable_bat"),
        (["--model_config_file=missing"], "missing"),
        (["--model_config_file=bad"], "bad is not a tensorflow.serving.ModelServerConfig"),
        (["a", "--monitoring_config_file=bad"], "is not a tensorflow.serving.MonitoringConfig"),
        (
            ["a", "--enable_batching", "--batching_parameters_file=sizes"],
            "allowed_batch_sizes must ascend and end with max_batch_size (8), received [4, 2]",
        ),
    ],
)
def test_wrong_flags_are_refused_with_a_word_on_them(flags, message, tmp_path, monkeypatch, capsys):
    from keras_pg import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text("model_config_list: 3 {")
    (tmp_path / "sizes").write_text(
        "max_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 2"
    )
    assert cli.main(["serve", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(base, capsys):
    from keras_pg import cli

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for flag in ("--port", "--rest_api_port"):
            others = {"--port": "0", "--rest_api_port": "0"} | {flag: str(port)}
            assert cli.main(["serve", str(base), *(f"{k}={v}" for k, v in others.items())]) == 2
            assert str(port) in capsys.readouterr().err


# ------------------------------------------------------------------------------------ batching


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
    from keras_pg.serving.batching import Batcher

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
    from keras_pg.serving.batching import Batcher
    from keras_pg.serving.status import RequestError

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


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.float32(1)}, "input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "y": np.zeros(3)}, "must have equal 0th-dimension size"),
        ({"x": np.zeros(9)}, "Task size 9 is larger than maximum input batch size 8"),
    ],
)
def test_what_cannot_be_batched_is_refused(inputs, message):
    from keras_pg.serving.batching import Batcher
    from keras_pg.serving.status import RequestError

    with pytest.raises(RequestError, match=message):
        Batcher(BatchingParameters(max_batch_size=8))("key", dict, inputs)


def test_outputs_without_a_row_for_each_input_are_refused():
    from keras_pg.serving.batching import Batcher
    from keras_pg.serving.status import RequestError

    batcher = Batcher(BatchingParameters())
    for output, message in ((np.float32(1), "0 dimensions"), (np.zeros(1), "does not equal the s")):
        with pytest.raises(RequestError, match=message):
            batcher("key", lambda inputs, output=output: {"y": output}, {"x": np.zeros(2)})


# -------------------------------------------------------------------------------------- limits


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server with low limits, whose tests leave it as it is."""
    base = tmp_path_factory.mktemp("limits") / "policy"
    save_doubling(base / "1")
    limits = {"max_message_bytes": 10_000, "request_seconds": 0.5, "max_connections": 20}
    with serving(base, **limits) as server:
        yield server


def still_serves(server):
    return rest(server, PREDICT, ONE) == (200, {"predictions": [[2.0, 4.0]]})


def test_a_large_body_is_refused_and_a_large_message_too(small_server):
    body = json.dumps({"instances": [[1.0, 2.0]] * 2000}).encode()
    assert rest(small_server, PREDICT, body) == (
        413,
        {"error": "The body is larger than 10000 bytes."},
    )
    with stubs(small_server) as (service, _), pytest.raises(grpc.RpcError) as error:
        service.Predict(predict_request("policy", x=np.zeros((2000, 2), np.float32)), timeout=30)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert still_serves(small_server)


def test_a_body_of_unannounced_length_is_cut_off(small_server):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        with contextlib.suppress(OSError):
            for _ in range(1000):
                connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""
    assert still_serves(small_server)


def test_deep_nesting_is_refused(small_server):
    for depth in (65, 4000):
        body = b'{"instances": ' + b"[" * depth + b"]" * depth + b"}"
        status, answer = rest(small_server, PREDICT, body)
        assert status == 400 and "nested deeper than 64" in answer["error"]
    text = {"instances": ["[" * 1000]}
    status, answer = rest(small_server, PREDICT, text)
    assert status == 400 and "is not of expected type: float" in answer["error"]


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/mod", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_client_that_sends_slowly_is_cut_off(small_server, sent):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(sent)
        connection.settimeout(10)
        start = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - start < 5
    assert still_serves(small_server)


def test_slow_clients_do_not_keep_others_out_for_long(small_server):
    address = "127.0.0.1", small_server.rest_api_port
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # twice what may be connected
            stack.enter_context(socket.create_connection(address)).sendall(b"POST /v1")

        def served():
            with contextlib.suppress(OSError):
                return rest(small_server, PREDICT, ONE)[0] == 200

        eventually(served)


def test_a_tensor_that_would_be_huge_is_refused(small_server):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "policy"
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1.0)
    for sizes in ([2**40, 2**20], [2**62, 2**62], [-1, 2], [2**31, 1]):
        request.inputs["x"].tensor_shape.CopyFrom(tf.TensorShape(None).as_proto())
        request.inputs["x"].tensor_shape.unknown_rank = False
        for size in sizes:
            request.inputs["x"].tensor_shape.dim.add(size=size)
        with stubs(small_server) as (service, _), pytest.raises(grpc.RpcError) as error:
            service.Predict(request, timeout=30)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert error.value.details() == "tensor parsing error: x"


def test_tensors_that_cannot_be_read_are_refused_at_once(small_server):
    deep = predict_request("policy", x=np.float32([[1, 2]]))
    deep.inputs["x"].tensor_shape.Clear()
    for _ in range(300):
        deep.inputs["x"].tensor_shape.dim.add(size=2**62)
    wide = predict_request("policy", x=np.uint8([[1, 2]]))
    wide.inputs["x"].tensor_content = b""
    wide.inputs["x"].int_val.append(300)
    for request in (deep, wide):
        with stubs(small_server) as (service, _), pytest.raises(grpc.RpcError) as error:
            service.Predict(request, timeout=30)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    # Of inputs that the signature has not, nothing is read.
    stranger = predict_request("policy", x=np.float32([[1, 2]]), y=np.float32([1]))
    stranger.inputs["y"].tensor_shape.dim[0].size = 2**40
    with stubs(small_server) as (service, _), pytest.raises(grpc.RpcError) as error:
        service.Predict(stranger, timeout=30)
    assert "Sent extra: {y}" in error.value.details()


def test_calls_that_never_send_their_message_keep_nobody_out(small_server):
    never = threading.Event()

    def nothing():
        never.wait(20)
        yield from ()

    with contextlib.ExitStack() as stack:
        for _ in range(12):
            address = f"127.0.0.1:{small_server.port}"
            channel = stack.enter_context(grpc.insecure_channel(address))
            channel.stream_unary("/tensorflow.serving.PredictionService/Predict").future(nothing())
        time.sleep(0.5)
        with stubs(small_server) as (service, _):
            service.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=10)
        never.set()


def test_large_heads_are_cut_off(small_server):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(b"GET /v1/models/policy HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for i in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (i, b"x" * 1000))
    assert still_serves(small_server)


def test_a_version_of_many_digits_is_none(small_server):
    for digits in (20, 5000):
        path = f"/v1/models/policy/versions/{'9' * digits}:predict"
        assert rest(small_server, path, ONE) == (400, "")
    status, _ = rest(small_server, f"/v1/models/policy/versions/{'0' * 30}1:predict", ONE)
    assert status == 200


def test_a_client_that_does_not_take_its_answer_is_cut_off(tmp_path):
    size = 16_000_000  # more than the buffers of both ends
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.fill(tf.shape(x), "a" * size)},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    tf.saved_model.save(
        module, str(tmp_path / "policy" / "1"), signatures={"serving_default": module.f}
    )
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"
    with serving(tmp_path / "policy", port=None, request_seconds=0.5) as server:
        with socket.create_connection(("127.0.0.1", server.rest_api_port)) as connection:
            connection.sendall(head.encode() + b'{"inputs": [1]}')
            time.sleep(2)  # reading nothing
            received = 0
            with contextlib.suppress(OSError):
                while chunk := connection.recv(2**20):
                    received += len(chunk)
        assert received < size
        assert rest(server, "/v1/models/policy")[0] == 200


def test_an_error_shows_no_more_than_the_beginning_of_a_large_document(small_server):
    body = json.dumps({"instances": {"k": [{"a": 1}] * 900}})
    status, answer = rest(small_server, PREDICT, body.encode())
    assert status == 400 and len(answer["error"]) < 4500 and "...TRUNCATED" in answer["error"]


def test_no_model_name_leaves_the_base_path(small_server):
    for name in ("..%2f..%2fetc", "%2e%2e", "policy%2f1", "policy%00"):
        status, answer = rest(small_server, f"/v1/models/{name}:predict", ONE)
        assert status == 404 and "Servable not found" in answer["error"]


DOCUMENTED = {200, 400, 404, 413, 501}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "b64", "signature_name", "y"]), inner, max_size=3)
    ),
    max_leaves=20,
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name", "examples", "context"]),
    JSON_VALUES,
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(document=DOCUMENTS, verb=st.sampled_from(["predict", "classify", "regress"]))
def test_any_json_is_answered_with_a_documented_status(small_server, document, verb):
    status, answer = rest(small_server, f"/v1/models/policy:{verb}", document)
    assert status in DOCUMENTED
    assert "Traceback" not in str(answer)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), cut=st.integers(0, 40))
def test_any_bytes_are_answered_with_a_documented_status(small_server, body, cut):
    whole = json.dumps(ONE).encode()
    for content in (body, whole[:cut] + body, whole[:cut] + body + whole[cut:]):
        status, answer = rest(small_server, PREDICT, content)
        assert status in DOCUMENTED, (content, answer)


@settings(max_examples=200, deadline=None)
@given(message=st.binary(max_size=200))
def test_any_message_is_answered_with_a_grpc_status(small_server, message):
    with grpc.insecure_channel(f"127.0.0.1:{small_server.port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as error:
            call(message, timeout=30)
    assert error.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


# ------------------------------------------------------------------------------------- answers


def test_requests_in_flight_are_finished_when_the_server_stops(base, monkeypatch):
    from keras_pg.serving.servable import Servable

    run, entered = Servable._run, threading.Event()

    def slow_run(*arguments):
        entered.set()
        time.sleep(0.5)
        return run(*arguments)

    monkeypatch.setattr(Servable, "_run", slow_run)
    with serving(base) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        over_rest = pool.submit(rest, server, PREDICT, ONE)
        assert entered.wait(10)
        entered.clear()
        with stubs(server) as (service, _):
            request = predict_request("policy", x=np.float32([[1, 2]]))
            over_grpc = pool.submit(service.Predict, request, 30)
            assert entered.wait(10)
            server.stop()
            assert over_rest.result() == (200, {"predictions": [[2.0, 4.0]]})
            assert tf.make_ndarray(over_grpc.result().outputs["y"]).tolist() == [[2.0, 4.0]]
        with pytest.raises(OSError):
            rest(server, PREDICT, ONE)


def test_metrics_count_requests_and_time_them(base):
    with serving(base, metrics_path="/metrics") as server, stubs(server) as (service, _):
        for _ in range(3):
            rest(server, PREDICT, ONE)
        rest(server, PREDICT, {"instances": [["a"]]})
        for i, body in enumerate([ONE, ONE, b"{", b"[]", {"signature_name": 1}]):
            rest(server, f"/v1/models/unknown{i}:predict", body)
        service.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=30)
        status, text = rest(server, "/metrics")
    assert status == 200
    count = ":tensorflow:serving:request_count"
    assert f'{count}{{model_name="policy",status="OK"}} 4.0' in text
    assert f'{count}{{model_name="policy",status="INVALID_ARGUMENT"}} 1.0' in text
    assert f'{count}{{model_name="",status="NOT_FOUND"}} 2.0' in text
    assert "unknown" not in text
    latency = ":tensorflow:serving:request_latency_count"
    assert f'{latency}{{API="Predict",entrypoint="GRPC",model_name="policy"}} 1.0' in text


def test_pages_of_other_origins_may_call_where_that_is_enabled(base):
    for cors in (False, True):
        with serving(base, port=None, cors=cors) as server:
            address = "127.0.0.1", server.rest_api_port
            with socket.create_connection(address) as connection:
                connection.sendall(
                    f"OPTIONS {PREDICT} HTTP/1.1\r\nHost: x\r\nOrigin: http://page\r\n\r\n".encode()
                )
                answer = connection.recv(1000).lower()
            assert answer.startswith(b"http/1.1 200")
            assert (b"access-control-allow-origin: *" in answer) == cors


@pytest.mark.parametrize("name", ["discrete", "integers", "multibinary", "squashed"])
def test_policies_act_over_both_protocols_as_the_agent_does(exported, name):
    agent, version = exported(name)
    observations = raw_observations(agent.actor.observation_space, 64)
    expected = agent.act(observations)
    with serving(version.parent) as server, stubs(server) as (service, _):
        answer = service.Predict(predict_request("policy", observation=observations), timeout=30)
        over_grpc = tf.make_ndarray(answer.outputs["action"])
        status, answer = rest(server, PREDICT, {"instances": observations.tolist()})
        assert status == 200, answer
        over_rest = np.array([row["action"] for row in answer["predictions"]])
    assert over_grpc.dtype == expected.dtype
    np.testing.assert_allclose(over_grpc, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(over_rest, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------ clients nobody here wrote


def test_ovmsclient_over_both_protocols(exported):
    agent, version = exported("cartpole")
    observations = raw_observations(agent.actor.observation_space, 7).astype(np.float32)
    with serving(version.parent) as server:
        for client in (
            ovmsclient.make_grpc_client(f"127.0.0.1:{server.port}"),
            ovmsclient.make_http_client(f"127.0.0.1:{server.rest_api_port}"),
        ):
            answer = client.predict({"observation": observations}, "policy", model_version=1)
            np.testing.assert_array_equal(answer["action"], agent.act(observations))
            assert client.get_model_status("policy", model_version=1)[1]["state"] == "AVAILABLE"
            metadata = client.get_model_metadata("policy", model_version=1)
            # Over REST this client knows another server's keys, and gives back what it got.
            assert (metadata.get("model_version") or int(metadata["model_spec"]["version"])) == 1


def test_published_stubs_read_the_signatures(exported):
    _, version = exported("cartpole")
    with serving(version.parent) as server, stubs(server) as (service, _):
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "policy"
        packed = service.GetModelMetadata(request, timeout=30).metadata["signature_def"]
        signatures = get_model_metadata_pb2.SignatureDefMap()
        assert packed.Unpack(signatures)
        assert {"serving_default", "sample"} <= set(signatures.signature_def)


def test_a_configuration_with_two_models_of_one_name_is_refused(tmp_path):
    file = tmp_path / "models.config"
    entry = f'config {{ name: "a" base_path: "{tmp_path}" }}'
    file.write_text(f"model_config_list {{ {entry} {entry} }}")
    with pytest.raises(ValueError, match="Two models have one name"):
        Models(config.read_models(file))
