"""The command line; answers, metrics and stopping; clients that nobody here wrote."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
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
from tensorflow_serving.apis import get_model_metadata_pb2

from clients import free_port, predict_request, rest, stubs
from keras_pg.serving.models import Model, Models, latest
from keras_pg.serving.server import MAX_REQUEST_BYTES, Server
from keras_pg.serving.status import RequestError
from keras_pg.spaces import by_name
from policies import raw_observations
from servers import ONE, PREDICT, eventually, publish, serving

ROOT = pathlib.Path(__file__).parents[2]


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
        (["a", "--max_request_bytes=0"], "--max_request_bytes must be a positive integer"),
        (["--model_config_file=missing"], "missing"),
        (["--model_config_file=bad"], "bad is not a tensorflow.serving.ModelServerConfig"),
        (["a", "--monitoring_config_file=bad"], "is not a tensorflow.serving.MonitoringConfig"),
        (
            ["a", "--enable_batching", "--batching_parameters_file=sizes"],
            "must be positive, ascend and end with max_batch_size (8), received [4, 2]",
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


def test_a_flag_that_is_true_or_false_leaves_the_base_path_alone():
    from keras_pg import cli

    for flags, expected in (
        (["--enable_batching"], (True, True)),
        (["--enable_batching=true", "--enable_model_warmup"], (True, True)),
        (["--enable_model_warmup=false", "--enable_batching=false"], (False, False)),
    ):
        for arguments in ([*flags, "base"], ["base", *flags]):
            options = cli.parser().parse_args(["serve", *arguments])
            assert options.base == "base"
            assert (options.enable_batching, options.enable_model_warmup) == expected
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["serve", "base", "--enable_batching=maybe"])


def test_every_flag_is_documented():
    from keras_pg import cli

    (commands,) = cli.parser()._subparsers._group_actions
    flags = {flag.partition("=")[0] for flag in commands.choices["serve"]._option_string_actions}
    text = (ROOT / "docs" / "serving.md").read_text()
    documented = {
        flag for flag in flags if re.search(rf"^\| .*`{flag}\b.* \|$", text, re.MULTILINE)
    }
    assert flags - documented == {"-h", "--help"}


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_port_that_is_taken_is_named_before_anything_is_loaded(flag, base, capsys, monkeypatch):
    from keras_pg import cli

    monkeypatch.setattr(Models, "poll", lambda models: pytest.fail("models are loaded"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        others = {"--port": "0", "--rest_api_port": "0"} | {flag: str(port)}
        assert cli.main(["serve", str(base), *(f"{k}={v}" for k, v in others.items())]) == 2
    error = capsys.readouterr().err
    assert f"Cannot listen on 127.0.0.1:{port}, which is {flag}: [Errno 98]" in error
    assert f"Give {flag} another port" in error


def test_a_port_is_held_while_models_are_loaded_and_nobody_is_answered(base, monkeypatch):
    poll, ports = Models.poll, []

    def watched_poll(models):
        if not ports:
            ports.extend([server.port, server.rest_api_port])
            for port in ports:
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
        poll(models)

    monkeypatch.setattr(Models, "poll", watched_poll)
    server = Server(Models([Model("policy", base, latest())]), port=0, rest_api_port=0)
    with server, stubs(server) as (service, _):
        assert [server.port, server.rest_api_port] == ports
        assert rest(server, PREDICT, ONE)[0] == 200
        service.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=30)


def test_one_port_for_both_protocols_is_refused(base, capsys):
    from keras_pg import cli

    assert cli.main(["serve", str(base), "--port=7000", "--rest_api_port=7000"]) == 2
    assert "--port and --rest_api_port are both 7000" in capsys.readouterr().err


def test_a_version_in_the_place_of_its_base_is_refused_with_the_base(base, tmp_path, capsys):
    from keras_pg import cli

    assert cli.main(["serve", str(base / "1")]) == 2
    error = capsys.readouterr().err
    assert f"{base / '1'} holds saved_model.pb, so it is a version of a policy" in error
    assert f"Give the directory above it: {base}." in error
    file = tmp_path / "models.config"
    file.write_text(f'model_config_list {{ config {{ name: "a" base_path: "{base / "1"}" }} }}')
    assert cli.main(["serve", f"--model_config_file={file}"]) == 2
    assert f"Give the directory above it: {base}." in capsys.readouterr().err
    # One that has no number is given one.
    os.rename(base / "1", tmp_path / "bare")
    assert cli.main(["serve", str(tmp_path / "bare")]) == 2
    assert f"such as {tmp_path / 'bare' / '1'}, and give {tmp_path / 'bare'}." in (
        capsys.readouterr().err
    )


def test_the_size_of_requests_has_a_flag(base):
    with command(base, "--max_request_bytes=1000") as server:
        assert server.stdout.readline().startswith("REST")
        assert server.stdout.readline().startswith("gRPC")
        assert rest(server, PREDICT, b" " * 1001) == (
            413,
            {"error": "The body is larger than 1000 bytes."},
        )
        assert rest(server, PREDICT, ONE)[0] == 200
        with stubs(server) as (service, _), pytest.raises(grpc.RpcError) as error:
            service.Predict(predict_request("policy", x=np.ones((500, 2))), timeout=30)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_default_size_of_requests_is_that_of_the_server():
    from keras_pg import cli

    options = cli.parser().parse_args(["serve", "base"])
    assert options.max_request_bytes == MAX_REQUEST_BYTES


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


def test_a_nan_is_answered_with_nan_and_the_first_action(exported):
    for name in ("cartpole", "clipped"):
        agent, version = exported(name)
        rows = np.zeros((2, *agent.actor.observation_space.shape), np.float32)
        rows[0, 0] = np.nan
        with serving(version.parent, port=None) as server:
            body = json.dumps({"inputs": rows.tolist()}).encode()
            status, answer = rest(server, PREDICT, body)
        outputs = {key: np.array(values) for key, values in answer["outputs"].items()}
        assert status == 200
        described = outputs["probabilities" if name == "cartpole" else "mean"]
        assert np.isnan(described[0]).all() and np.isfinite(described[1]).all()
        if name == "cartpole":
            assert outputs["action"][0] == 0
        else:
            assert np.isnan(outputs["action"][0]).all()


@pytest.mark.parametrize(
    "name", ["discrete", "integers", "multibinary", "masked", "masked components", "squashed"]
)
def test_policies_act_over_both_protocols_as_the_agent_does(exported, name):
    agent, version = exported(name)
    observations = raw_observations(agent.actor.observation_space, 64)
    expected = agent.act(observations)
    with serving(version.parent) as server, stubs(server) as (service, _):
        inputs = by_name(observations)
        answer = service.Predict(predict_request("policy", **inputs), timeout=30)
        over_grpc = tf.make_ndarray(answer.outputs["action"])
        columns = {key: values.tolist() for key, values in inputs.items()}
        instances = [dict(zip(columns, row)) for row in zip(*columns.values())]
        status, answer = rest(server, PREDICT, {"instances": instances})
        assert status == 200, answer
        over_rest = np.array([row["action"] for row in answer["predictions"]])
    assert over_grpc.dtype == expected.dtype
    np.testing.assert_allclose(over_grpc, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(over_rest, expected, rtol=1e-6, atol=1e-6)


def test_a_refused_request_is_not_kept_by_its_error(tmp_path):
    from keras_pg.serving.servable import Servable

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
