"""Requests that TensorFlow Serving answers in a way of its own, as its sources (2.20.0) say."""

import gzip
import json
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from clients import predict_request, rest, stubs
from keras_pg.serving import protobuf_tensors
from recorded_models import save_doubling
from servers import ONE, PREDICT, serving

TWICE = {"predictions": [[2.0, 4.0]]}
EMPTY = {"error": "JSON Parse error: The document is empty"}
PLAIN = json.dumps(ONE).encode()
LIMIT = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of one version, whose tests leave it as it is."""
    base = tmp_path_factory.mktemp("requests") / "policy"
    save_doubling(base / "1")
    with serving(base, max_request_bytes=LIMIT, metrics_path="/metrics") as server:
        yield server


def refused(call, request):
    """(code, details) of a call that is refused."""
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=30)
    return error.value.code(), error.value.details()


# -------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("method", "request_class"),
    [
        ("Predict", predict_pb2.PredictRequest),
        ("Classify", classification_pb2.ClassificationRequest),
        ("Regress", regression_pb2.RegressionRequest),
        ("GetModelMetadata", get_model_metadata_pb2.GetModelMetadataRequest),
        ("MultiInference", inference_pb2.MultiInferenceRequest),
    ],
)
def test_an_empty_label_that_is_set_is_an_unknown_label(server, method, request_class):
    request = request_class()
    spec = request.tasks.add().model_spec if method == "MultiInference" else request.model_spec
    spec.name, spec.version_label = "policy", ""
    if method == "GetModelMetadata":
        request.metadata_field.append("signature_def")
    with stubs(server) as (service, _):
        assert refused(getattr(service, method), request) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unrecognized servable version label: ",
        )


def test_the_status_of_a_model_is_that_of_all_versions_whatever_the_label(server):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version_label = "policy", ""
    with stubs(server) as (_, models):
        (version,) = models.GetModelStatus(request, timeout=30).model_version_status
        assert version.version == 1
        # It is the one method that does not ask for a name.
        nameless = get_model_status_pb2.GetModelStatusRequest()
        nameless.model_spec.SetInParent()
        message = "Could not find any versions of model "
        assert refused(models.GetModelStatus, nameless) == (grpc.StatusCode.NOT_FOUND, message)


def test_the_field_of_the_metadata_is_looked_at_before_the_name(server):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.SetInParent()
    with stubs(server) as (service, _):
        _, message = refused(service.GetModelMetadata, request)
        assert message == "GetModelMetadataRequest must specify at least one metadata_field"
        request.metadata_field.append("signature_def")
        _, message = refused(service.GetModelMetadata, request)
        assert message == "ModelSpec has no name specified."


def test_an_empty_label_can_be_given_to_a_version(server):
    request = model_management_pb2.ReloadConfigRequest()
    model = request.config.model_config_list.config.add(name="policy")
    model.base_path = str(next(iter(server.models._models.values())).base_path)
    before = dict(server.models._models)
    try:
        model.version_labels[""] = 1
        labelled = predict_request("policy", x=np.float32([[1, 2]]))
        labelled.model_spec.version_label = ""
        with stubs(server) as (service, models):
            models.HandleReloadConfigRequest(request, timeout=30)
            answer = service.Predict(labelled, timeout=30)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2.0, 4.0]]
    finally:
        server.models.configure(before.values())
        server.models.poll()


def test_tasks_of_a_multi_inference_are_looked_at_in_turn(tmp_path):
    module = tf.Module()
    module.f = tf.function(
        lambda inputs: {"outputs": tf.strings.length(inputs)},
        input_signature=[tf.TensorSpec([None], tf.string, "inputs")],
    )
    signatures = {"serving_default": module.f, "other": module.f}
    tf.saved_model.save(module, str(tmp_path / "policy" / "1"), signatures=signatures)
    regress = "tensorflow/serving/regress"
    good = "policy", "", regress
    cases = {
        "ModelSpec has no name specified.": [],
        "Found ModelSpec with an empty model name.": [good, ("", "", regress)],
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.": [
            good,
            ("else", "", regress),
        ],
        "Duplicate evaluation of signature: serving_default": [good, good],
        "Requested signature not found in model graph: a": [good, ("policy", "a", regress)],
        "Unsupported signature method_name: regress": [good, ("policy", "other", "regress")],
        "regress is TensorFlow Serving's; this stand-in has it not.": [good],
    }
    with serving(tmp_path / "policy", rest_api_port=None) as server, stubs(server) as (service, _):
        for message, tasks in cases.items():
            request = inference_pb2.MultiInferenceRequest()
            for name, signature, method in tasks:
                task = request.tasks.add(method_name=method)
                task.model_spec.name, task.model_spec.signature_name = name, signature
            assert refused(service.MultiInference, request)[1] == message


# --------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("verb", ["PREDICT", "Predict", "predicT", "CLASSIFY", "Regress", "x", ""])
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_verbs_are_known_by_small_letters_only(server, verb, version):
    path = f"/v1/models/policy{version}:{verb}"
    assert rest(server, path, ONE) == (400, {"error": f"Malformed request: POST {path}"})


def test_the_rest_of_a_path_is_known_in_all_cases(server):
    assert rest(server, "/V1/Models/policy/VERSIONS/1:predict", ONE) == (200, TWICE)
    # A version beyond int64 is found before the verb is.
    large = f"/v1/models/policy/versions/{2**63}"
    assert rest(server, f"{large}:PREDICT", ONE) == (400, "")


def test_metadata_in_capitals_is_the_status(server):
    status = rest(server, "/v1/models/policy")
    assert "model_version_status" in status[1]
    for resource in ("METADATA", "Metadata"):
        assert rest(server, f"/v1/models/policy/{resource}") == status
    assert "metadata" in rest(server, "/v1/models/policy/metadata")[1]


def page(status, phrase):
    text = (
        f"<HTML><HEAD>\n<TITLE>{status} {phrase}</TITLE>\n</HEAD><BODY>\n<H1>{phrase}</H1>\n"
        "</BODY></HTML>\n"
    )
    return status, text


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/models/%:predict", "/v1/models/%4:predict", "/v1/models/%zz:predict"),
        *("/v1/models/policy/labels/%:predict", "/v1/models/policy%", "/v1/models/%/metadata"),
        *("/v1/models/policy?a=%", '/v1/models/a"b', "/v1/models/{policy}", "/v1/models/a|b"),
        *("/v1/models/a\\b", "/v1/models/a^b", "/v1/models/a`b", "/v1/models/a[b]", "/v1/<a>"),
        *("/%", "/metrics%"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_path_that_is_no_uri_is_a_bad_request(server, path, method):
    assert rest(server, path, ONE, method) == page(400, "Bad Request")
    assert rest(server, PREDICT, ONE) == (200, TWICE)


def test_a_path_that_is_a_uri_is_none(server):
    for name in ("a%20b", "a%2fb", "a!$&'()*+,;=@-._~b", "%7b"):
        status, answer = rest(server, f"/v1/models/{name}:predict", ONE)
        assert status == 404 and "Servable not found" in answer["error"]
    assert rest(server, "/v1/models/%70olicy:predict", ONE) == (200, TWICE)


def test_methods_that_libevent_is_not_told_of_are_not_implemented(server):
    assert rest(server, "/v1/models/policy", method="TRACE") == page(501, "Not Implemented")
    assert rest(server, "/v1/models/policy", method="PATCH") == (
        400,
        {"error": "Malformed request: PATCH /v1/models/policy"},
    )
    assert rest(server, "/other", method="OPTIONS", headers={"Origin": "http://a"})[0] == 404


# ---------------------------------------------------------------------------------------- gzip


def zipped(server, body, encoding="gzip", path=PREDICT):
    return rest(server, path, body, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate, gzip"])
def test_a_body_may_be_compressed_with_gzip(server, encoding):
    assert zipped(server, gzip.compress(PLAIN), encoding) == (200, TWICE)
    named = gzip.compress(PLAIN)[:3] + b"\x08" + gzip.compress(PLAIN)[4:10] + b"name\0"
    assert zipped(server, named + gzip.compress(PLAIN)[10:], encoding) == (200, TWICE)


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        b"",
        gzip.compress(b""),
        gzip.compress(PLAIN)[:-1],
        gzip.compress(PLAIN)[:-8],
        gzip.compress(PLAIN)[:12],
        gzip.compress(PLAIN)[:5],
        gzip.compress(PLAIN)[:-8] + b"\0" * 4 + gzip.compress(PLAIN)[-4:],
        gzip.compress(PLAIN)[:-4] + b"\1\0\0\0",
        gzip.compress(PLAIN) + b"x",
        gzip.compress(PLAIN) + gzip.compress(b" "),
        zlib.compress(PLAIN),
    ],
    ids=[
        *(
            "plain",
            "empty",
            "of nothing",
            "cut",
            "no trailer",
            "cut early",
            "head only",
            "checksum",
        ),
        *("length", "something behind", "two", "zlib"),
    ],
)
def test_what_gzip_did_not_make_counts_as_an_empty_body(server, body):
    assert zipped(server, body) == (400, EMPTY)
    assert zipped(server, body, path="/v1/models/policy:classify") == (400, EMPTY)
    # Where nobody reads the body it may be anything.
    headers = {"Content-Encoding": "gzip"}
    assert rest(server, "/v1/models/policy", body, "GET", headers)[0] == 200


@pytest.mark.parametrize("encoding", ["GZIP", "deflate", "br", "identity"])
def test_other_encodings_are_not_looked_at(server, encoding):
    assert zipped(server, PLAIN, encoding) == (200, TWICE)
    status, answer = zipped(server, gzip.compress(PLAIN), encoding)
    assert status == 400 and answer["error"].startswith("JSON Parse error: Invalid")


def test_a_body_that_is_too_large_when_uncompressed_is_refused(server):
    fits = PLAIN + b" " * (LIMIT - len(PLAIN))
    assert zipped(server, gzip.compress(fits)) == (200, TWICE)
    for size in (LIMIT + 1, 2**28):
        bomb = gzip.compress(PLAIN + b" " * (size - len(PLAIN)))
        if len(bomb) <= LIMIT:
            assert zipped(server, bomb) == (413, {"error": "The body is larger than 10000 bytes."})
        assert zipped(server, gzip.compress(PLAIN)) == (200, TWICE)


# ------------------------------------------------------------------------------------- tensors


def test_an_unknown_rank_is_not_looked_at(server):
    request = predict_request("policy", x=np.float32([[1, 2]]))
    request.inputs["x"].tensor_shape.unknown_rank = True
    with stubs(server) as (service, _):
        answer = service.Predict(request, timeout=30)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2.0, 4.0]]
        # Without dimensions it is a scalar, as without the flag.
        scalar = predict_request("policy", x=np.float32(3))
        scalar.inputs["x"].tensor_shape.unknown_rank = True
        assert tf.make_ndarray(service.Predict(scalar, timeout=30).outputs["y"]) == 6.0


@pytest.mark.parametrize(
    ("dtype", "field", "given", "shape", "expected"),
    [
        ("float32", "float_val", [1, 2, 3], [2], [1, 2]),
        ("float32", "float_val", [1], [2, 2], [[1, 1], [1, 1]]),
        ("float32", "float_val", [1, 2], [4], [1, 2, 2, 2]),
        ("float32", "float_val", [], [2], [0, 0]),
        ("uint8", "int_val", [300], [1], [44]),
        ("int64", "int64_val", [], [], 0),
        ("string", "string_val", [b"a"], [2], [b"a", b"a"]),
        ("string", "string_val", [b"a"], [], b"a"),
        ("bool", "bool_val", [True], [1], [True]),
        ("float16", "half_val", [15360], [1], [1]),
    ],
)
def test_values_that_do_not_fill_a_shape_are_read_as_by_tensorflow(
    dtype, field, given, shape, expected
):
    proto = tf.make_tensor_proto(0, tf.float32)
    proto.Clear()
    proto.dtype = tf.as_dtype(dtype).as_datatype_enum
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    getattr(proto, field).extend(given)
    array = protobuf_tensors.read_all({"x": proto})["x"]
    assert protobuf_tensors.data_type(array) == tf.as_dtype(dtype)
    assert array.tolist() == expected
