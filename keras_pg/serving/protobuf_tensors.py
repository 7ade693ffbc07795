"""`TensorProto` messages to NumPy arrays and back."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from keras_pg.serving.status import invalid

MAX_BYTES = 2**29
MAX_DIMENSIONS = 254  # TensorFlow's
# Fields of `TensorProto` for the values of a type; others are sent as `tensor_content`.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
}


def read_all(protos):
    """{name: array} of {name: message}.

    Raises:
        RequestError: values do not fill a shape, a type is unknown, or all together would be larger
            than `MAX_BYTES`, which a few bytes suffice to ask for.
    """
    arrays, size = {}, 0
    for name, proto in protos.items():
        try:
            size += _bytes(proto)
            if size > MAX_BYTES:
                raise ValueError
            arrays[name] = _array(proto)
        except (ValueError, TypeError, tf.errors.OpError, MemoryError):
            raise invalid(f"tensor parsing error: {name}") from None
    return arrays


def _array(proto):
    # TensorFlow's own parser, and not `tf.make_ndarray`, which refuses messages that it takes: of
    # values too many the first are taken, of none zeros are made, integers wrap around.
    dtype = tf.as_dtype(proto.dtype)
    array = tf.io.parse_tensor(proto.SerializeToString(), dtype).numpy()
    return np.asarray(array, object) if dtype == tf.string else array


def _bytes(proto):
    """Size of the array that a message asks for.

    A shape of unknown rank has the dimensions it lists: TensorFlow does not look at that flag.
    """
    dimensions = proto.tensor_shape.dim
    if len(dimensions) > MAX_DIMENSIONS:
        raise ValueError
    sizes = [dimension.size for dimension in dimensions]
    if min(sizes, default=0) < 0:
        raise ValueError
    return math.prod(sizes) * max(tf.as_dtype(proto.dtype).size or 0, 8)


def write(array):
    """The message of an array, with its values in typed fields as TensorFlow Serving sends them."""
    dtype = data_type(array)
    field = _FIELDS.get(dtype.name)
    if field is None:
        return tf.make_tensor_proto(array, dtype)
    shape = tf.TensorShape(array.shape).as_proto()
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=shape)
    getattr(proto, field).extend(array.ravel().tolist())
    return proto


def data_type(array):
    """The TensorFlow type of an array."""
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)


def type_name(dtype):
    """A type's name in TensorFlow's C++ messages."""
    return {"float32": "float", "float64": "double", "float16": "half"}.get(dtype.name, dtype.name)
