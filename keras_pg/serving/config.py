"""TensorFlow Serving's configuration files, in protobuf's text format."""

import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from keras_pg.serving.batching import BatchingParameters
from keras_pg.serving.models import from_config

_FIELD = descriptor_pb2.FieldDescriptorProto
# Of `BatchingParameters`; refused, unless at their defaults.
_NOT_DONE = (
    "pad_variable_length_inputs",
    "enable_large_batch_splitting",
    "max_execution_batch_size",
)


def read_models(path):
    """The `Model`s of a `--model_config_file`.

    Raises:
        ValueError: it is no `tensorflow.serving.ModelServerConfig`, or it is empty, as a file that
            is being written, or a model of it cannot be served.
    """
    config = _read(path, model_server_config_pb2.ModelServerConfig)
    if config.WhichOneof("config") != "model_config_list":
        raise ValueError(f"{path} has no model_config_list.")
    return [from_config(model) for model in config.model_config_list.config]


def read_batching(path):
    """The `BatchingParameters` of a `--batching_parameters_file`.

    Raises:
        ValueError: it is no `tensorflow.serving.BatchingParameters`, or asks for what cannot be
            done, or is not done here.
    """
    config = _read(path, _message("BatchingParameters"))
    given = {f.name: v.value if f.message_type else v for f, v in config.ListFields()}
    given["allowed_batch_sizes"] = tuple(config.allowed_batch_sizes)
    given.pop("thread_pool_name", None)
    for name in _NOT_DONE:
        if given.pop(name, False):
            raise ValueError(
                f"{path}: {name} is TensorFlow Serving's; this stand-in does not do that. Leave it "
                "out."
            )
    try:
        return BatchingParameters(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_monitoring(path):
    """The path of the metrics in a `--monitoring_config_file`; None if they are not enabled.

    Raises:
        ValueError: it is no `tensorflow.serving.MonitoringConfig`.
    """
    prometheus = _read(path, _message("MonitoringConfig")).prometheus_config
    if not prometheus.enable:
        return None
    return prometheus.path or "/monitoring/prometheus/metrics"


def _read(path, message_class):
    try:
        return text_format.Parse(pathlib.Path(path).read_text(), message_class())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        name = message_class.DESCRIPTOR.full_name
        raise ValueError(f"{path} is not a {name} in protobuf's text format: {error}") from None


# Fields of the messages that the published stubs have not: session_bundle_config.proto and
# monitoring_config.proto. A type with a point is a message.
_INTEGER, _BOOLEAN, _TEXT = _FIELD.TYPE_INT64, _FIELD.TYPE_BOOL, _FIELD.TYPE_STRING
_MESSAGES = {
    "BoolValue": {"value": _BOOLEAN},
    "Int64Value": {"value": _INTEGER},
    "StringValue": {"value": _TEXT},
    "BatchingParameters": {
        "max_batch_size": ".Int64Value",
        "batch_timeout_micros": ".Int64Value",
        "max_enqueued_batches": ".Int64Value",
        "num_batch_threads": ".Int64Value",
        "thread_pool_name": ".StringValue",
        "allowed_batch_sizes": [_INTEGER],
        "pad_variable_length_inputs": _BOOLEAN,
        "enable_large_batch_splitting": ".BoolValue",
        "max_execution_batch_size": ".Int64Value",
    },
    "PrometheusConfig": {"enable": _BOOLEAN, "path": _TEXT},
    "MonitoringConfig": {"prometheus_config": ".PrometheusConfig"},
}


def _message(name):
    """The class of one of `_MESSAGES`."""
    file = descriptor_pb2.FileDescriptorProto(
        name="serving_config.proto", package="tensorflow.serving", syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        descriptor = file.message_type.add(name=message)
        for number, (field, type_) in enumerate(fields.items(), 1):
            added = descriptor.field.add(name=field, number=number, label=_FIELD.LABEL_OPTIONAL)
            if isinstance(type_, list):
                added.label, [type_] = _FIELD.LABEL_REPEATED, type_
            if isinstance(type_, str):
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{file.package}{type_}"
            else:
                added.type = type_
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
