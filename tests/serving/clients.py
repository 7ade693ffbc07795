"""Plain clients of a `Server`, for tests."""

import contextlib
import http.client
import json
import socket

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


def free_port():
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def rest(server, path, body=None, method=None, headers=None):
    """(status, parsed JSON or text) of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body)
    method = method or ("GET" if body is None else "POST")
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    with contextlib.suppress(ValueError):
        text = json.loads(text)
    return response.status, text


def states(server, name="policy"):
    """{version: state}, as REST tells."""
    _, answer = rest(server, f"/v1/models/{name}")
    entries = answer.get("model_version_status", [])
    return {int(entry["version"]): entry["state"] for entry in entries}


@contextlib.contextmanager
def stubs(server):
    """The published stubs of both services."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


def predict_request(name, signature="", **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, values in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
    return request
