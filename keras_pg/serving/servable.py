"""One version of a model, held in a session as TensorFlow Serving holds it."""

import contextlib
import functools
import pathlib
import threading

import tensorflow as tf
from google.protobuf.message import DecodeError
from grpc import StatusCode
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

from keras_pg.saved_model import WARMUP
from keras_pg.serving import protobuf_tensors
from keras_pg.serving.batching import Batcher
from keras_pg.serving.status import RequestError, from_tensorflow, invalid

MAX_WARMUP_RECORDS = 1000
_PYTHON_OPS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")


class Servable:
    """A SavedModel's signatures, run without Python, without XLA and without checks of shapes.

    Args:
        directory: the version directory.
        warm_up: run the requests of `assets.extra/tf_serving_warmup_requests`.
        batching: `BatchingParameters`; None runs each request on its own.

    Raises:
        RequestError: the SavedModel cannot be loaded, or a request of the warm-up fails.
    """

    def __init__(self, directory, *, warm_up=True, batching=None):
        graph = tf.Graph()
        # A policy's operations take microseconds: handing them to other threads costs more.
        config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=-1)
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        self._batcher = None if batching is None else Batcher(batching)
        self._callables = {}
        self._lock = threading.Lock()
        try:
            with graph.as_default(), _without_deprecations():
                meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestError(StatusCode.NOT_FOUND, str(error)) from None
        self.signatures = dict(meta_graph.signature_def)
        self._errors = _errors(meta_graph)
        if warm_up:
            self._warm_up(pathlib.Path(directory) / WARMUP)

    def signature(self, name):
        """The `SignatureDef` of a request over gRPC; no name means "serving_default"."""
        name = name or "serving_default"
        if name not in self.signatures:
            raise RequestError(
                StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        return self.signatures[name]

    def answer(self, request):
        """The outputs {name: array} for a `PredictRequest`; raises as `predict` does."""
        name = request.model_spec.signature_name
        # Names first: a tensor that nobody asked for may be large.
        _check_names(self.signature(name), request.inputs)
        inputs = protobuf_tensors.read_all(request.inputs)
        return self.predict(name, inputs, list(request.output_filter))

    def predict(self, signature_name, inputs, output_filter=()):
        """Runs a signature.

        Args:
            signature_name: a name, or "" for "serving_default".
            inputs: {name: array}.
            output_filter: names of the outputs to compute; all if empty.

        Returns:
            {name: array}.

        Raises:
            RequestError: with TensorFlow Serving's code and words.
        """
        signature = self.signature(signature_name)
        _check_names(signature, inputs)
        _check_types(signature, inputs)
        fetched = _check_filter(signature, output_filter)
        key = (signature_name or "serving_default", tuple(fetched))
        if (error := self._errors.get(key[0])) is not None:
            raise RequestError(error.code, error.message)  # its own traceback, not all of them
        run = functools.partial(self._run, key, signature)
        return run(inputs) if self._batcher is None else self._batcher(key, run, inputs)

    def _run(self, key, signature, inputs):
        _, fetched = key
        with self._lock:
            if key not in self._callables:
                self._callables[key] = self._make_callable(signature, fetched)
        try:
            arrays = self._callables[key](*(inputs[name] for name in signature.inputs))
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        return dict(zip(fetched, arrays))

    def _make_callable(self, signature, fetched):
        # Not `Session.run`, which would check the shapes.
        return self._session._make_callable_from_options(
            config_pb2.CallableOptions(
                feed=[info.name for info in signature.inputs.values()],
                fetch=[signature.outputs[name].name for name in fetched],
            )
        )

    def _warm_up(self, path):
        if not path.exists():
            return
        try:
            for i, record in enumerate(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()):
                if i == MAX_WARMUP_RECORDS:
                    raise invalid(
                        f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) at "
                        f"{path}"
                    )
                self._replay(prediction_log_pb2.PredictionLog.FromString(record))
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        except DecodeError:
            message = f"{path} holds a record that is no PredictionLog"
            raise RequestError(StatusCode.DATA_LOSS, message) from None

    def _replay(self, log):
        kind = log.WhichOneof("log_type")
        if kind == "predict_log":
            self.answer(log.predict_log.request)
        elif kind is not None:
            raise RequestError(StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")


@contextlib.contextmanager
def _without_deprecations():
    """Silences the advice to use `tf.saved_model.load`, which runs signatures in Python."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_names(signature, names):
    expected = signature.inputs
    if len(names) != len(expected):
        extra = ",".join(sorted(set(names) - set(expected)))
        missing = ",".join(sorted(set(expected) - set(names)))
        raise invalid(
            f"input size does not match signature: {len(names)}!={len(expected)} "
            f"len({{{','.join(sorted(names))}}}) != len({{{','.join(sorted(expected))}}}). "
            f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
        )
    for name, info in expected.items():
        if name not in names:
            raise invalid(
                f"Signature input alias: {name}(feed name: {info.name}) not found in request and "
                "no default value provided. Inputs expected to be in the request "
                f"{{{','.join(sorted(names))}}}, or default input alias set: "
            )


def _check_types(signature, inputs):
    for name, info in signature.inputs.items():
        got = protobuf_tensors.data_type(inputs[name])
        if info.dtype != got.as_datatype_enum:
            wanted, got = map(protobuf_tensors.type_name, (tf.as_dtype(info.dtype), got))
            position = sorted(signature.inputs).index(name)
            raise invalid(f"Expects arg[{position}] to be {wanted} but {got} is provided")


def _check_filter(signature, output_filter):
    """The outputs to fetch."""
    for i, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the "
                f"set {{{','.join(sorted(signature.outputs))}}}."
            )
        if name in output_filter[:i]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return list(output_filter) or list(signature.outputs)


# ------------------------------------------------------------------ what the server cannot execute


def _errors(meta_graph):
    """{signature: the error of every request to it}, where it needs XLA or Python.

    TensorFlow Serving loads such a model, and has neither.
    """
    functions = {f.signature.name: f for f in meta_graph.graph_def.library.function}
    nodes = {node.name: node for node in meta_graph.graph_def.node}
    errors = {}
    for name, signature in meta_graph.signature_def.items():
        needed, waiting = set(), [_node(info.name) for info in signature.outputs.values()]
        while waiting:
            node = waiting.pop()
            if node not in needed and node in nodes:
                needed.add(node)
                waiting += map(_node, nodes[node].input)
        found = (_error(nodes[node], None, functions, set()) for node in sorted(needed))
        if (error := next(filter(None, found), None)) is not None:
            errors[name] = error
    return errors


def _error(node, path, functions, visited):
    """The error of running a node, or a function that it calls; None if it can be run.

    The server's message names the node by the path of calls to it, less the outermost.
    """
    outermost = path is None
    path = path or node.name
    called = [functions[name] for name in _called(node) if name in functions]
    if any(f.attr["_XlaMustCompile"].b for f in (node, *called) if "_XlaMustCompile" in f.attr):
        return RequestError(
            StatusCode.INTERNAL, f"XLA compilation disabled\n\t [[{{{{node {path}}}}}]]"
        )
    if node.op in _PYTHON_OPS:
        return invalid(
            f"No OpKernel was registered to support Op '{node.op}' used by {{{{node {path}}}}} "
            "with these attrs: []\nRegistered devices: [CPU]\nRegistered kernels:\n"
            f"  <no registered kernels>\n\n\t [[{path}]]"
        )
    for function in called:
        if function.signature.name in visited:
            continue
        visited.add(function.signature.name)
        for inner in function.node_def:
            below = inner.name if outermost else f"{path}/{inner.name}"
            if error := _error(inner, below, functions, visited):
                return error
    return None


def _called(node):
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)


def _node(tensor):
    return tensor.removeprefix("^").split(":")[0]
