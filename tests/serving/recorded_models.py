"""The models on which `recordings/exchanges.json` was recorded: constants, the same anywhere."""

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

# As `--model_config_file` had them: {name: ({version: directory}, labels)}; all versions served.
CONFIG = """
model_config_list {{
  config {{
    name: "policy"
    base_path: "{0}/policy"
    model_platform: "tensorflow"
    model_version_policy {{ all {{}} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "single" base_path: "{0}/single" }}
  config {{ name: "pair" base_path: "{0}/pair" }}
  config {{ name: "guarded" base_path: "{0}/guarded" }}
  config {{ name: "types" base_path: "{0}/types" }}
  config {{ name: "examples" base_path: "{0}/examples" }}
  config {{ name: "noserve" base_path: "{0}/noserve" }}
  config {{ name: "jit" base_path: "{0}/jit" }}
  config {{ name: "pyfunc" base_path: "{0}/pyfunc" }}
  config {{ name: "warm" base_path: "{0}/warm" }}
}}
"""
PLAIN_TYPES = (
    *("bool", "string", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
)


def write(base):
    """Writes all of them below `base`."""
    observation = _spec((None, 3), tf.float32, "obs")
    value = (lambda obs: {"value": tf.reduce_sum(obs, -1)}, observation)
    for version, sign in ((1, 1.0), (2, -1.0)):
        _save(base / f"policy/{version}", serving_default=(_policy(sign), observation), value=value)
    pairs = _spec((None, 2), tf.float32, "x")
    double = (lambda x: {"y": x * 2.0}, pairs)
    _save(base / "single/7", serving_default=double)
    _save(base / "noserve/1", act=double)
    _save(base / "warm/1", serving_default=double)
    write_warmup(base / "warm/1", "serving_default")
    _save(
        base / "pair/1",
        serving_default=(
            lambda obs, seed: {"action": obs + tf.cast(seed, tf.float32)},
            _spec((None, 2), tf.float32, "obs"),
            _spec((2,), tf.int32, "seed"),
        ),
    )
    _save(
        base / "guarded/1",
        serving_default=(
            lambda x: {"y": tf.ensure_shape(x, (None, 2)) - tf.constant([1.0, 2.0])},
            pairs,
        ),
    )
    _save(base / "types/1", **_types())
    _save(base / "examples/1", **_examples())
    compiled = tf.function(lambda x: tf.tanh(x) * 2.0, jit_compile=True)
    _save(base / "jit/1", serving_default=(lambda x: {"y": compiled(x)}, pairs))

    def python(x):
        return {"y": tf.ensure_shape(tf.py_function(lambda a: a * 2, [x], tf.float32), (None, 2))}

    _save(base / "pyfunc/1", serving_default=(python, pairs))


def write_warmup(directory, signature):
    """A warm-up record of a model with one input, `x` [N, 2]."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "warm", signature
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0]], tf.float32))
    (directory / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(directory / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def save_doubling(directory, factor=2.0, warmup=None):
    """A model with one signature, x [N, 2] → y, a multiple."""
    multiple = (lambda x: {"y": x * factor}, _spec((None, 2), tf.float32, "x"))
    _save(directory, serving_default=multiple)
    if warmup is not None:
        write_warmup(directory, warmup)


def _spec(shape, dtype, name):
    return tf.TensorSpec(shape, dtype, name=name)


def _save(directory, **signatures):
    """Writes signatures, each a function and its specs."""
    module = tf.Module()
    module.functions = {
        name: tf.function(function, input_signature=specs)
        for name, (function, *specs) in signatures.items()
    }
    tf.saved_model.save(module, str(directory), signatures=dict(module.functions))


def _policy(sign):
    weights = tf.constant([[1.0, -1.0], [0.5, 0.25], [0.0, 2.0]]) * sign

    def act(obs):
        logits = obs @ weights
        return {"action": tf.argmax(logits, -1, output_type=tf.int32), "logits": logits}

    return act


def _types():
    numbers = _spec((None,), tf.float32, "x")
    signatures = {
        name: (lambda x: {"y": tf.identity(x)}, _spec(None, getattr(tf, name), "x"))
        for name in PLAIN_TYPES
    }
    infinite = [float("nan"), float("inf"), -float("inf"), -0.0]
    return signatures | {
        "serving_default": signatures["float32"],
        "nonfinite": (lambda x: {"y": tf.concat([x, infinite], 0)}, numbers),
        "scalar": (lambda x: {"y": tf.reduce_sum(x)}, numbers),
        "ragged_batch": (lambda x: {"a": x, "b": x[:1]}, numbers),
        "empty": (lambda x: {"y": x[:0]}, _spec((None, 2), tf.float32, "x")),
        "raw_bytes": (
            lambda x: {"y_bytes": tf.identity(x)},
            _spec((None,), tf.string, "x"),
        ),
        "two": (
            lambda a, b: {"s": a + b, "d": a - b},
            _spec((None,), tf.float32, "a"),
            _spec((None,), tf.float32, "b"),
        ),
        "fails": (
            lambda x: {"y": tf.debugging.check_numerics(x, "observation not finite")},
            numbers,
        ),
    }


def _examples():
    serialized = _spec((None,), tf.string, "inputs")

    def features(inputs):
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]

    def classify(inputs):
        scores = tf.nn.softmax(features(inputs))
        return {
            "scores": scores,
            "classes": tf.tile([["left", "right"]], [tf.shape(scores)[0], 1]),
        }

    return {
        "serving_default": (classify, serialized),
        "classify": (classify, serialized),
        "regress": (lambda inputs: {"outputs": tf.reduce_sum(features(inputs), -1)}, serialized),
    }
