"""Requests that are too large, too many, too slow, or nothing that was agreed on."""

import asyncio
import contextlib
import http.client
import json
import pathlib
import socket
import threading
import time

import grpc
import httptools
import numpy as np
import pytest
import tensorflow as tf
import uvicorn
import uvicorn.server
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from clients import predict_request, rest, stubs
from keras_pg.serving.http_protocol import MAX_HEAD_BYTES, impatient_protocol
from recorded_models import save_doubling
from servers import ONE, PREDICT, eventually, serving

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def small_server(tmp_path_factory):
    """A server with low limits, whose tests leave it as it is."""
    base = tmp_path_factory.mktemp("limits") / "policy"
    save_doubling(base / "1")
    limits = {"max_request_bytes": 10_000, "request_seconds": 0.5, "max_connections": 20}
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


WHOLE = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
UNFINISHED = b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", b"POST /v1/mod", UNFINISHED, WHOLE + UNFINISHED, WHOLE + b"POST /v1"]
)
def test_a_client_that_sends_slowly_is_cut_off(small_server, sent):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(sent)
        connection.settimeout(10)
        start = time.monotonic()
        answer = everything(connection)
        assert time.monotonic() - start < 4
    assert answer.count(b"HTTP/1.1 ") == sent.count(WHOLE)
    assert still_serves(small_server)


def test_line_ends_between_requests_keep_no_connection(small_server):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(WHOLE)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read()
        connection.sendall(b"\r\n")
        connection.settimeout(10)
        start = time.monotonic()
        assert everything(connection) == b""
        assert time.monotonic() - start < 4


def everything(connection):
    """What comes until the server closes the connection or resets it."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := connection.recv(2**16):
            received += chunk
    return received


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_an_offer_of_another_protocol_is_ignored(small_server, chunked, step):
    """As Java's `HttpClient` makes it with every request, until it is taken up."""
    body = json.dumps(ONE).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    offer = "Connection: Upgrade, HTTP2-Settings\r\nuPgrade: h2c\r\nHTTP2-Settings: AAEAAEAA"
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\n{offer}\r\n{length}\r\n\r\n".encode()
    sent = head + (b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):  # the connection lives on
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert json.loads(response.read()) == {"predictions": [[2.0, 4.0]]}


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 4096])
@pytest.mark.parametrize("close", ["close, ", ""], ids=["close", "keep"])
@pytest.mark.parametrize(
    "before", [b"\r\n\r\n", WHOLE, CHUNKED, WHOLE + b"\r\n"], ids=["CRLF", "a", "chunked", "both"]
)
def test_an_offer_is_ignored_wherever_its_request_begins(small_server, before, close, step):
    body = json.dumps(ONE).encode()
    offer = "Upgrade: h2c\r\nConnection: {}Upgrade\r\nHTTP2-Settings: AAEAAEAA"
    request = f"POST {PREDICT} HTTP/1.1\r\n{offer}\r\nContent-Length: {len(body)}\r\n\r\n"
    requests = [request.format(end).encode() + body for end in ("", "", close)]
    sent = before + b"".join(requests) + (b"" if close else WHOLE + UNFINISHED)
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.settimeout(10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
        answers = everything(connection)
    assert answers.count(b'{"predictions": [[2.0, 4.0]]}') == 3
    assert answers.count(b"HTTP/1.1 ") == sent.count(b"POST") - sent.count(UNFINISHED)


@pytest.mark.parametrize("sent", [b"\0garbage", b"CONNECT x:80 HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_is_answered_at_once(small_server, sent):
    for before in (b"", b"\r\n"):
        with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
            connection.sendall(before + sent)
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
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


def test_more_connections_than_the_limit_are_unavailable(small_server, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "export" / "clients")
    from rest_client import RestPolicy

    address = "127.0.0.1", small_server.rest_api_port
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(address))
        assert rest(small_server, PREDICT, ONE) == (503, "Service Unavailable")
        with pytest.raises(RuntimeError, match="policy:predict: 503, Service Unavailable"):
            RestPolicy(f"http://127.0.0.1:{address[1]}", "policy")([[1.0, 2.0]])
    eventually(lambda: still_serves(small_server))


def test_more_calls_than_the_limit_exhaust_resources(small_server):
    def code():
        with stubs(small_server) as (service, _):
            try:
                service.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=30)
            except grpc.RpcError as error:
                return error.code()

    with calls_without_a_message(small_server, 20):
        eventually(lambda: code() == grpc.StatusCode.RESOURCE_EXHAUSTED)
    eventually(lambda: code() is None)


@contextlib.contextmanager
def calls_without_a_message(server, count):
    never = threading.Event()

    def nothing():
        never.wait(20)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        predict = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
        calls = [predict.future(nothing()) for _ in range(count)]
        yield
        for call in calls:  # kept until here: a call that is forgotten is cancelled
            call.cancel()
        never.set()


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
    with calls_without_a_message(small_server, 12):
        time.sleep(0.5)
        with stubs(small_server) as (service, _):
            service.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=10)


def test_large_heads_are_cut_off(small_server):
    with socket.create_connection(("127.0.0.1", small_server.rest_api_port)) as connection:
        connection.sendall(b"GET /v1/models/policy HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for i in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (i, b"x" * 1000))
    assert still_serves(small_server)


def parsed(*chunks):
    """What the protocol wrote when nothing answers requests."""

    class Transport(asyncio.Transport):
        written = b""
        closing = False

        def write(self, data):
            self.written += data

        def close(self):
            self.closing = True

        abort = close

        def is_closing(self):
            return self.closing

        def pause_reading(self):
            pass

    async def application(scope, receive, send):
        await asyncio.sleep(60)

    async def run():
        config = uvicorn.Config(application, ws="none", lifespan="off", log_config=None)
        transport = Transport()
        protocol = impatient_protocol(60)(config, uvicorn.server.ServerState(), {})
        protocol.connection_made(transport)
        for chunk in chunks:
            if not transport.closing:
                protocol.data_received(chunk)
        return transport.written

    return asyncio.run(run())


LARGE = b"x" * MAX_HEAD_BYTES
HEAD = b"GET / HTTP/1.1\r\nA: b\r\n"


@pytest.mark.parametrize(
    "chunks",
    [
        [HEAD + b"A: " + LARGE + b"\r\n\r\n"],
        [HEAD + b"A: " + LARGE],
        [HEAD, b"A: ", LARGE],
        [HEAD + b"A:\r\n" * (MAX_HEAD_BYTES // 4) + b"\r\n"],
        [b"GET /" + LARGE + b" HTTP/1.1\r\n\r\n"],
        [HEAD + b"\r\n" + HEAD + b"A: " + LARGE + b"\r\n\r\n"],
        [HEAD + b"Connection: Upgrade\r\nUpgrade: a\r\nA: " + LARGE + b"\r\n\r\n"],
        [CHUNKED[:-2], b"A: ", LARGE],
        [b"\r\n" * MAX_HEAD_BYTES],
    ],
    ids=["whole", "one", "two", "many", "path", "second", "offer", "trailer", "line ends"],
)
def test_a_large_head_is_refused_however_it_comes(chunks):
    answer = parsed(*chunks)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1


def test_large_bodies_are_no_heads():
    length = b"Content-Length: %d\r\n\r\n" % (3 * len(LARGE))
    post = b"POST / HTTP/1.1\r\n" + length
    assert parsed(HEAD + b"\r\n" + post + LARGE, LARGE, LARGE + post, LARGE) == b""


@pytest.mark.parametrize("begin", [HEAD, b"GET /", HEAD + b"A: ", CHUNKED[:-2] + b"A: "])
def test_a_head_that_comes_in_single_bytes_is_read_once(begin, monkeypatch):
    pieces = []

    class Parser(httptools.HttpRequestParser):
        def feed_data(self, data):
            pieces.append(bytes(data))
            super().feed_data(data)

    monkeypatch.setattr(httptools, "HttpRequestParser", Parser)
    sent = [begin, *[b"a"] * (MAX_HEAD_BYTES - len(begin))]
    assert parsed(*sent) == b"" and pieces == sent


def test_many_offers_in_one_piece_are_all_read():
    offer = b"GET / HTTP/1.1\r\nUpgrade: a\r\nConnection: Upgrade\r\n\r\n"
    answer = parsed(5000 * offer + HEAD + b"A: " + LARGE + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")  # to the last: the others wait for their answers


def test_a_version_of_many_digits_is_none(small_server):
    for digits in (20, 5000):
        path = f"/v1/models/policy/versions/{'9' * digits}:predict"
        assert rest(small_server, path, ONE) == (400, "")
    for zeros in (30, 5000):
        version = f"/v1/models/policy/versions/{'0' * zeros}1"
        for path, body in (
            (f"{version}:predict", ONE),
            (version, None),
            (f"{version}/metadata", None),
        ):
            assert rest(small_server, path, body)[0] == 200
        assert rest(small_server, f"{version[:-1]}:predict", ONE)[0] == 404


def test_a_length_of_many_digits_is_read(small_server):
    body = json.dumps(ONE).encode()
    headers = {"Content-Length": f"{'0' * 5000}{len(body)}"}
    status, _ = rest(small_server, PREDICT, body, headers=headers)
    assert status == 200


@pytest.mark.parametrize("meanwhile", [0, 1], ids=["", "and asks again"])
def test_a_client_that_does_not_take_its_answer_is_cut_off(meanwhile, tmp_path):
    size = 16_000_000  # more than the buffers of both ends
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.fill(tf.shape(x), "a" * size)},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    tf.saved_model.save(
        module, str(tmp_path / "policy" / "1"), signatures={"serving_default": module.f}
    )
    request = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"
    request += '{"inputs": [1]}'
    with serving(tmp_path / "policy", port=None, request_seconds=0.5) as server:
        with socket.create_connection(("127.0.0.1", server.rest_api_port)) as connection:
            connection.sendall(request.encode())
            assert connection.recv(1, socket.MSG_PEEK)  # the answer waits to be taken
            connection.sendall(meanwhile * request.encode())
            time.sleep(1)  # reading nothing
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
