"""`keras-pg serve` answers what TensorFlow Serving answered, but for what docs/serving.md lists."""

import http.client
import json
import pathlib
import re

import grpc
import pytest
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

import recorded_models
from keras_pg.serving import config
from keras_pg.serving.models import Models
from keras_pg.serving.server import Server

HERE = pathlib.Path(__file__).parent
EXCHANGES = json.loads((HERE / "recordings" / "exchanges.json").read_text())
REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "Classify": classification_pb2.ClassificationRequest,
    "Regress": regression_pb2.RegressionRequest,
    "MultiInference": inference_pb2.MultiInferenceRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
}


def differences():
    """What docs/serving.md's table of differences says of each exchange that is in it."""
    text = (HERE.parents[1] / "docs" / "serving.md").read_text()
    rows = re.findall(r"^\| (REST|gRPC) \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    return {
        (kind.lower(), name): reason for kind, names, reason in rows for name in names.split("; ")
    }


def check(exchange, got, expected):
    """Differs if it is listed, and only then; an operation's words may be alike here or there."""
    reason = differences().get(exchange)
    if settled(got) != settled(expected):
        assert reason is not None, (expected, got)
    else:
        assert reason is None or "words of an operation" in reason, reason


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("recorded")
    recorded_models.write(base)
    file = base / "models.config"
    file.write_text(recorded_models.CONFIG.format(base))
    with Server(Models(config.read_models(file)), port=0, rest_api_port=0) as server:
        yield server


def over_rest(server, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_api_port, timeout=30)
    if isinstance(body, str):
        # As it was sent: one case is not UTF-8.
        body = body.encode("latin1" if "\xff" in body else "utf-8")
    elif body is not None:
        # The recording has keys in order; what the server made of them shows how they were sent.
        body = json.dumps({key: body[key] for key in sorted(body, reverse=True)})
    connection.request(method, path, body)
    response = connection.getresponse()
    text = response.read().decode("utf-8", "backslashreplace")
    connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = text
    return response.status, response.getheader("Content-Type"), answer


def over_grpc(server, call, request):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        services = prediction_service_pb2_grpc, model_service_pb2_grpc
        names = "PredictionServiceStub", "ModelServiceStub"
        of_model = call == "GetModelStatus"
        stub = getattr(services[of_model], names[of_model])(channel)
        try:
            response = getattr(stub, call)(request, timeout=30)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    answer = json_format.MessageToDict(response, preserving_proto_field_name=True)
    for name, tensor in getattr(response, "outputs", {}).items():
        # As arrays, so that two encodings of a tensor compare equal.
        array = tf.make_ndarray(tensor)
        values = json.loads(json.dumps(array.tolist(), default=lambda b: b.decode("latin1")))
        dtype = answer["outputs"][name]["dtype"]
        answer["outputs"][name] = {"dtype": dtype, "shape": list(array.shape), "values": values}
    return "OK", answer


def settled(answer):
    """The answer as text, less what differs between two starts of TensorFlow Serving.

    Which of several failing nodes spoke, numbers of functions, the order of maps and of attributes.
    """
    text = json.dumps(answer, sort_keys=True)
    text = re.sub(r"found in SignatureDef: .*", "found in SignatureDef", text)
    text = re.sub(
        r"Tensor name: \w+ has inconsistent batch size: \d+ expecting: \d+",
        "inconsistent batch",
        text,
    )
    text = re.sub(r"with these attrs: \[.*?\]\\+n", "", text)
    return re.sub(r"\\+n\\+t \[\[.*?\]\]", "", text)


@pytest.mark.parametrize("name", EXCHANGES["rest"])
def test_rest(server, name):
    recorded = EXCHANGES["rest"][name]
    try:
        body = json.loads(recorded["body"])
    except ValueError:
        body = recorded["body"]
    expected = recorded["status"], recorded["content_type"], body
    got = over_rest(server, *recorded["request"])
    check(("rest", name), got, expected)


@pytest.mark.parametrize("name", EXCHANGES["grpc"])
def test_grpc(server, name):
    recorded = EXCHANGES["grpc"][name]
    request = REQUESTS[recorded["call"]].FromString(bytes.fromhex(recorded["request"]))
    expected = recorded["code"], recorded.get("details") or recorded.get("response")
    got = over_grpc(server, recorded["call"], request)
    check(("grpc", name), got, expected)
