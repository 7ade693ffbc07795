"""Policies on a server that speaks TensorFlow Serving's protocols."""

import re

import requests

from keras_pg.extras import installation

_PATH = r"(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_REST = re.compile(rf"https?://[^/]+/v1/models/{_PATH}/?")
_GRPC = re.compile(rf"grpc://(?P<address>[^/]+)/{_PATH}/?")
TIMEOUT = 30.0  # seconds


def connect(url):
    """(run, version): the served policy as a function from inputs to outputs, and its number.

    Both are dictionaries of arrays by name, inputs such as {"observation": ...}.

    Args:
        url: `http://HOST:8501/v1/models/NAME` or `grpc://HOST:8500/NAME`, either with
            `/versions/N` or `/labels/LABEL` after it.

    Raises:
        ValueError: another kind of URL.
        ConnectionError: there is no such server, or no such model on it.
        ImportError: gRPC needs the extra `serve`.
    """
    if _REST.fullmatch(url):
        return _connect_rest(url.rstrip("/"))
    if match := _GRPC.fullmatch(url):
        return _connect_grpc(match)
    raise ValueError(
        "A served policy is http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME, with "
        f"/versions/N or /labels/LABEL after it if need be, received {url!r}."
    )


def _connect_rest(url):
    session = requests.Session()

    def ask(method, path, **arguments):
        try:
            response = session.request(method, url + path, timeout=TIMEOUT, **arguments)
            answer = response.json()
        except (requests.RequestException, ValueError) as error:
            raise ConnectionError(f"{url} does not answer: {error}") from None
        if response.status_code != 200:
            raise ConnectionError(f"{url} answers {response.status_code}: {answer.get('error')}")
        return answer

    version = int(ask("GET", "/metadata")["model_spec"]["version"])
    # From here on that version, whatever is loaded meanwhile.
    of_version = f"/versions/{version}:predict"
    url = re.sub("/(versions|labels)/[^/]+$", "", url)

    def run(inputs):
        columns = {name: array.tolist() for name, array in inputs.items()}
        return ask("POST", of_version, json={"inputs": columns})["outputs"]

    return run, version


def _connect_grpc(match):
    try:
        import grpc
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            predict_pb2,
            prediction_service_pb2_grpc,
        )
    except ImportError as error:
        raise ImportError(f"A grpc:// URL needs {error.name}: {installation('serve')}.") from error
    import tensorflow as tf

    channel = grpc.insecure_channel(match["address"])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(call, request, version=None):
        request.model_spec.name = match["name"]
        if version := version or match["version"]:
            request.model_spec.version.value = int(version)
        elif match["label"]:
            request.model_spec.version_label = match["label"]
        try:
            return call(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            raise ConnectionError(
                f"{match[0]} answers {error.code().name}: {error.details()}"
            ) from None

    def run(inputs):
        request = predict_pb2.PredictRequest()
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        outputs = ask(stub.Predict, request, version).outputs
        return {name: tf.make_ndarray(tensor) for name, tensor in outputs.items()}

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    version = ask(stub.GetModelMetadata, request).model_spec.version.value
    return run, version
