"""TensorFlow Serving's gRPC services over the models."""

import functools
import logging
import threading

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from grpc import StatusCode
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_pg.serving import protobuf_tensors
from keras_pg.serving.models import from_config
from keras_pg.serving.status import RequestError, invalid

MAX_MESSAGE_BYTES = 1024
LARGE = 2**20  # bytes of a request that is answered after other large ones, and not beside them
_VERBS = {f"tensorflow/serving/{verb}": verb for verb in ("classify", "regress")}
_log = logging.getLogger(__name__)


def _call(method):
    """A service method that ends the call with the status of a `RequestError`."""

    @functools.wraps(method)
    def call(self, request, context):
        try:
            return method(self, request)
        except RequestError as error:
            context.abort(error.code, _cut(error.message))
        except Exception:
            _log.exception("%s failed", method.__name__)
            context.abort(StatusCode.INTERNAL, "Internal error; the server's log has the cause.")

    return call


class RefuseWhatIsNoMessage(grpc.ServerInterceptor):
    """Answers bytes that cannot be parsed with INVALID_ARGUMENT.

    grpcio itself would log a traceback and keep some 20 kB for each of them.
    """

    def intercept_service(self, continuation, handler_call_details):
        """The handler of a call, with a parser that does not raise."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler

        def parse(serialized):
            try:
                return handler.request_deserializer(serialized)
            except DecodeError as error:
                return error  # grpcio takes None for its own failure

        def answer(request, context):
            if isinstance(request, DecodeError):
                context.abort(StatusCode.INVALID_ARGUMENT, "The request cannot be parsed.")
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, parse, handler.response_serializer)


def _cut(message):
    encoded = message.encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    return encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata; the other verbs find no signature that is theirs.

    Args:
        models: `Models`.
        metrics: `Metrics`.
        num_threads: predictions at once.
        large_executor: where messages of more than `LARGE` bytes are answered.
    """

    def __init__(self, models, metrics, num_threads, large_executor):
        self._models = models
        self._metrics = metrics
        self._slots = threading.BoundedSemaphore(num_threads)
        self._large_executor = large_executor

    @_call
    def Predict(self, request):
        if request.ByteSize() <= LARGE:
            return self._predict(request)
        return self._large_executor.submit(self._predict, request).result()

    def _predict(self, request):
        spec = _spec(request)
        with self._slots, self._metrics.request(spec.name, "GRPC", "Predict"):
            version, servable = self._models.find(*_wanted(spec))
            outputs = servable.answer(request)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = spec.name
            response.model_spec.version.value = version
            response.model_spec.signature_name = spec.signature_name or "serving_default"
            for name, array in outputs.items():
                response.outputs[name].CopyFrom(protobuf_tensors.write(array))
            return response

    @_call
    def GetModelMetadata(self, request):
        _check_spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        spec = _spec(request)
        version, servable = self._models.find(*_wanted(spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        packed = any_pb2.Any()
        packed.Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signatures))
        response.metadata["signature_def"].CopyFrom(packed)
        return response

    @_call
    def Classify(self, request):
        self._refuse_examples(request, "classify")

    @_call
    def Regress(self, request):
        self._refuse_examples(request, "regress")

    @_call
    def MultiInference(self, request):
        # The first task says which version all of them are asked of.
        first = request.tasks[0] if request.tasks else inference_pb2.InferenceTask()
        _, servable = self._models.find(*_wanted(_named(first.model_spec)))
        error, signatures = None, set()
        for task in request.tasks:
            spec, verb = task.model_spec, _VERBS.get(task.method_name)
            name = spec.signature_name or "serving_default"
            if not spec.name:
                raise invalid("Found ModelSpec with an empty model name.")
            if spec.name != first.model_spec.name:
                raise invalid(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
                )
            if name in signatures:
                raise invalid(f"Duplicate evaluation of signature: {name}")
            signatures.add(name)
            if name not in servable.signatures:
                raise invalid(f"Requested signature not found in model graph: {name}")
            if verb is None:
                raise RequestError(
                    StatusCode.UNIMPLEMENTED,
                    f"Unsupported signature method_name: {task.method_name}",
                )
            error = no_examples(servable, verb, name)
            if error.code is not StatusCode.UNIMPLEMENTED:
                raise error
        raise error

    def _refuse_examples(self, request, verb):
        spec = _spec(request)
        _, servable = self._models.find(*_wanted(spec))
        error = no_examples(servable, verb, spec.signature_name)
        given = request.input.WhichOneof("kind")
        if given is None or not getattr(request.input, given).examples:
            error = invalid("Input is empty.")
        raise error


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """Status of models, and another configuration while running."""

    def __init__(self, models):
        self._models = models

    @_call
    def GetModelStatus(self, request):
        _check_spec(request)
        name, version, _ = _wanted(request.model_spec)
        return status_response(self._models, name, version)

    @_call
    def HandleReloadConfigRequest(self, request):
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        try:
            self._models.configure(map(from_config, request.config.model_config_list.config))
        except ValueError as error:
            raise invalid(str(error)) from None
        self._models.poll()
        if missing := self._models.unavailable():
            message = f"{len(missing)} servable(s) did not become available: {missing}"
            raise RequestError(StatusCode.UNKNOWN, message)
        return model_management_pb2.ReloadConfigResponse()


def _spec(request):
    _check_spec(request)
    return _named(request.model_spec)


def _check_spec(request):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")


def _named(spec):
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    return spec


def _wanted(spec):
    """(name, version or None, label or None); a label may be set, and empty."""
    version = spec.version.value if spec.HasField("version") else None
    label = spec.version_label if spec.HasField("version_label") else None
    return spec.name, version, label


def status_response(models, name, version=None):
    """The `GetModelStatusResponse` of a model; raises a `RequestError` if there is none such."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state, error in models.status(name, version):
        entry = response.model_version_status.add(version=number, state=state)
        entry.status.SetInParent()
        if error is not None:
            entry.status.error_code = error.code.value[0]
            entry.status.error_message = error.message
    return response


def no_examples(servable, verb, signature_name):
    """The `RequestError` for classify and regress, of which policies have no signature.

    A signature that is made for these verbs would be used by TensorFlow Serving, and is not here.
    """
    name = signature_name or "serving_default"
    if name not in servable.signatures:
        return invalid(f"No signature was found with the name: {name}")
    signature = servable.signatures[name]
    if len(signature.inputs) != 1:
        return invalid("Expected one input Tensor.")
    outputs = len(signature.outputs)
    if verb == "classify" and outputs not in (1, 2):
        return invalid(f"Expected one or two output Tensors, found {outputs}")
    if verb == "regress" and outputs != 1:
        return invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        noun = {"classify": "classification", "regress": "regression"}[verb]
        return invalid(f"No {noun} inputs found in SignatureDef: {signature}")
    return RequestError(
        StatusCode.UNIMPLEMENTED, f"{verb} is TensorFlow Serving's; this stand-in has it not."
    )
