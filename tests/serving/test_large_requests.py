"""JSON that is read a piece at a time is the same JSON; and what memory large requests take."""

import gzip
import http.client
import json
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.protobuf import meta_graph_pb2

from clients import predict_request, rest, stubs
from keras_pg.serving import json_documents, json_tensors, services
from keras_pg.serving.server import MAX_REQUEST_BYTES
from keras_pg.serving.status import RequestError
from servers import ONE, PREDICT, serving
from test_server import command

FLOATS = {"x": meta_graph_pb2.TensorInfo(dtype=1)}
PAIR = {**FLOATS, "seed": meta_graph_pb2.TensorInfo(dtype=3)}


@pytest.fixture
def in_pieces(monkeypatch):
    """A function that runs another with documents read so many bytes at a time."""

    def run(function, piece):
        with monkeypatch.context() as context:
            context.setattr(json_documents, "LARGE", 0)
            context.setattr(json_documents, "PIECE", piece)
            try:
                return function()
            except RequestError as error:
                return error.code, error.message

    return run


def whole(value):
    """A value of a document without `LargeArray`s, as text."""

    def plain(value):
        if json_documents.is_array(value):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {key: plain(member) for key, member in value.items()}
        return value

    return json.dumps(plain(value))


VALUES = st.recursive(
    st.sampled_from(["1", "-2.5e3", "true", "null", "NaN", '"a,[b"', '"q\\"]"', '"é\\\\"', "[]"]),
    lambda inner: (
        st.lists(inner, max_size=5).map(lambda items: "[" + ", ".join(items) + "]")
        | st.lists(st.tuples(st.sampled_from("ab"), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"
        )
    ),
    max_leaves=25,
)
PIECES = ["[", "]", "{", "}", ",", ":", '"', "\\", "1", " ", "x", "\0", '"\\u0000"', "[0,0,0]"]


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(VALUES, max_size=4),
    end=st.sampled_from(["", " ", "]", "[1,2,3,4]", "\0[1,2,3,4,", "x"]),
    changes=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["", *PIECES])), max_size=2),
    piece=st.integers(2, 20),
    cut=st.binary(max_size=1),
)
def test_a_document_in_pieces_is_the_document(values, end, changes, piece, cut):
    members = (f'"{key}": {value}' for key, value in zip("abac", values))
    text = "{" + ", ".join(members) + "}" + end
    for place, change in changes:
        text = text[:place] + change + text[place + (change == "") :]
    body = text.encode() + cut

    def read():
        return whole(json_documents.parse(body))

    context = pytest.MonkeyPatch()
    results = []
    for large, size in ((2**20, 2**18), (0, piece)):
        context.setattr(json_documents, "LARGE", large)
        context.setattr(json_documents, "PIECE", size)
        try:
            results.append(read())
        except RequestError as error:
            results.append(error.message)
        finally:
            context.undo()
    assert results[0] == results[1]


ROWS = '{"instances": [[1, 2.5], [3e2, -4], [5, 6], [7, 8], [9, 1e300]]}'
NAMED = '{"instances": [{"x": [1], "seed": [2, 3]}, {"seed": [4, 5], "x": [6]}, {"x": [7], %s}]}'


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (ROWS, FLOATS),
        ('{"inputs": [[1, 2.5], [3, -4], [5, 6], [7, 8]]}', FLOATS),
        ('{"inputs": {"x": [[1, 2], [3, 4], [5, 6]], "seed": [[1], [2], [3]], "y": [1]}}', PAIR),
        ('{"inputs": {"seed": [[1, 2], [3, 4, 5]], "x": [1]}}', PAIR),
        ('{"inputs": [[1, 2], [3, 4], [5, 6], 7]}', FLOATS),
        ('{"inputs": [[1, 2], [3, 4], [5, [6]]]}', FLOATS),
        ('{"inputs": [[1, 2], [3, 4], [5, null]]}', FLOATS),
        (NAMED % '"seed": [8, 9]', PAIR),
        (NAMED % '"seed": [8, 9.5]', PAIR),
        (NAMED % '"seed": [8]', PAIR),
        (NAMED % '"sed": [8, 9]', PAIR),
        (ROWS.replace("[7, 8]", '{"x": [7, 8]}'), FLOATS),
        (ROWS.replace("[7, 8]", "[7]"), FLOATS),
        (ROWS.replace("[9, 1e300]", "[[9, 1]]"), FLOATS),
        (ROWS.replace("[9, 1e300]", '[9, "1"]'), FLOATS),
        ('{"instances": [' + 8 * '{"x": [1, 2]}, ' + '{"x": [1, 2]}]}', FLOATS),
        ('{"instances": [' + 8 * '{"x": [1, 2]}, ' + "[1, 2]]}", FLOATS),
        ('{"instances": [        ]}', FLOATS),
        ('{"instances": [1, 2, 3, 4, 5], "inputs": [1, 2, 3, 4, 5]}', FLOATS),
        ('{"signature_name": [1, 2, 3, 4, 5, 6, 7]}', FLOATS),
        ("[1, 2, 3, 4, 5, 6, 7, 8]", FLOATS),
        ('{"a": 1}', FLOATS),
    ],
)
def test_tensors_in_pieces_are_the_tensors(text, inputs, in_pieces):
    def read():
        document = json_documents.parse(text.encode())
        json_documents.signature_name(document)
        arrays, as_rows = json_tensors.read_inputs(document, inputs)
        return {k: (v.dtype, v.shape, v.tolist()) for k, v in arrays.items()}, as_rows

    try:
        expected = read()
    except RequestError as error:
        expected = error.code, error.message
    for piece in (3, 8, 17, 64):
        assert in_pieces(read, piece) == expected


def test_a_text_that_marks_a_large_array_cannot_be_made_up(in_pieces):
    body = b'{"a": ["\\u0000", 0], "b": [1, 2, 3, 4, 5, 6]}'
    assert json.loads(in_pieces(lambda: whole(json_documents.parse(body)), 8)) == json.loads(body)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 40_000])
def test_answers_in_pieces_are_the_answers(rows):
    outputs = {"a": np.arange(rows), "p": np.float32(rows) + np.ones((rows, 2), np.float32) / 3}
    both = b"".join(json_tensors.write_outputs(outputs, as_rows=True))
    expected = [{"a": a, "p": p} for a, p in zip(outputs["a"].tolist(), outputs["p"].tolist())]
    read = json.loads(both)["predictions"]
    assert [row["a"] for row in read] == [row["a"] for row in expected]
    np.testing.assert_array_equal(
        np.float32([row["p"] for row in read]), np.float32([row["p"] for row in expected])
    )
    assert both == json.dumps(json.loads(both)).encode()
    columns = json.loads(b"".join(json_tensors.write_outputs(outputs, as_rows=False)))["outputs"]
    assert columns["a"] == outputs["a"].tolist() and len(columns["p"]) == rows
    single = json_tensors.write_outputs({"a": outputs["a"]}, as_rows=True)
    assert json.loads(b"".join(single)) == {"predictions": outputs["a"].tolist()}
    scalar = json_tensors.write_outputs({"a": np.int32(rows)[()].reshape(())}, as_rows=False)
    assert json.loads(b"".join(scalar)) == {"outputs": rows}


def test_large_requests_are_answered_one_at_a_time_and_small_ones_beside_them(base, monkeypatch):
    from keras_pg.serving.servable import Servable

    run, go_on, entered, running = Servable._run, threading.Event(), threading.Semaphore(0), []

    def watched_run(servable, key, signature, inputs):
        if len(inputs["x"]) > 1:
            running.append(1)
            entered.release()
            assert go_on.wait(60)
        return run(servable, key, signature, inputs)

    monkeypatch.setattr(Servable, "_run", watched_run)
    monkeypatch.setattr(services, "LARGE", 1000)
    monkeypatch.setattr("keras_pg.serving.rest.LARGE", 1000)
    body = json.dumps({"instances": [[1.0, 2.0]] * 200}).encode()
    message = predict_request("policy", x=np.ones((200, 2), np.float32))
    with serving(base) as server, stubs(server) as (service, _):
        calls = [service.Predict.future(message, timeout=60)]
        assert entered.acquire(timeout=30)
        answers = []
        clients = [
            threading.Thread(target=lambda: answers.append(rest(server, PREDICT, body)[0]))
            for _ in range(3)
        ]
        for client in clients:
            client.start()
        calls.append(service.Predict.future(message, timeout=60))
        for _ in range(20):
            assert rest(server, PREDICT, ONE)[0] == 200
        assert len(running) == 1
        go_on.set()
        for client in clients:
            client.join()
        assert answers == [200] * 3 and all(call.result() for call in calls)
        assert len(running) == 5


# -------------------------------------------------------------------------------------- memory


def peak_mb(process):
    with open(f"/proc/{process.pid}/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+)", file.read())[1]) / 1024


def filled(start, unit, end):
    """A body as large as is allowed."""
    count = (MAX_REQUEST_BYTES - len(start) - len(end)) // len(unit)
    return start + (count * unit)[: -len(b",")] + end


BODIES = {
    "brackets": (400, lambda: b"[" * MAX_REQUEST_BYTES),
    "rows": (200, lambda: filled(b'{"instances": [', b"[0,0,0,0],", b"]}")),
    "numbers": (200, lambda: filled(b'{"instances": [', b"1.5,", b"]}")),
    "one row": (413, lambda: filled(b'{"instances": [[', b"0,", b"]]}")),
    "objects": (400, lambda: filled(b'{"instances": [', b'{"":0},', b"]}")),
    "a wrong row at the end": (400, lambda: filled(b'{"instances": [', b"[0,0],", b",[0]]}")),
    "one object": (413, lambda: filled(b"{", b'"a":0,', b"}")),
    "many names": (413, lambda: b"{" + b",".join(b'"%x":0' % i for i in range(2_900_000)) + b"}"),
    "strings": (400, lambda: filled(b'{"instances": [', b'"\\"",', b"]}")),
    "gzip": (413, lambda: gzip.compress(b" " * (4 * MAX_REQUEST_BYTES))),
}


def test_a_body_as_large_as_is_allowed_takes_less_than_500_mb(tmp_path):
    from recorded_models import save_doubling

    save_doubling(tmp_path / "policy" / "1")
    with command(tmp_path / "policy") as process:
        assert process.stdout.readline().startswith("REST")
        before = peak_mb(process)
        for kind, (expected, make) in BODIES.items():
            connection = http.client.HTTPConnection("127.0.0.1", process.rest_api_port, timeout=300)
            headers = {"Content-Encoding": "gzip"} if kind == "gzip" else {}
            connection.request("POST", PREDICT, make(), headers)
            response = connection.getresponse()
            answer = response.read()
            assert response.status == expected, (kind, answer[:200])
            # The connection is as good as before.
            connection.request("POST", PREDICT, json.dumps(ONE))
            assert json.loads(connection.getresponse().read()) == {"predictions": [[2.0, 4.0]]}
            connection.close()
            assert peak_mb(process) - before < 500, kind
