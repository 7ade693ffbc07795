"""Golden observations replayed against an exported policy, without keras_pg.

This file is also a program of its own, `python replay.py DIRECTORY`: it runs the policy where
neither keras_pg nor Keras has been imported, as in a server, and prints its report as JSON.
"""

import json
import pathlib
import sys
import time

import numpy as np

GOLDEN = "assets.extra/golden.npz"


def read_golden(directory):
    """(observations, {output: the agent's values}) of a version directory."""
    with np.load(pathlib.Path(directory) / GOLDEN) as golden:
        outputs = {k.removeprefix("output_"): golden[k] for k in golden if k != "observation"}
        return golden["observation"], outputs


def compare(outputs, expected, tolerance=1e-5):
    """How far outputs are from the agent's.

    Args:
        outputs: {name: array}.
        expected: {name: array}.
        tolerance: greatest absolute difference, plus that share of the value, that counts as equal;
            integers and booleans must be the same.

    Returns:
        {"max_difference": {name: float}, "equal": bool}; infinite for an output that is not there
        or has another shape.
    """
    differences, equal = {}, True
    for name, values in expected.items():
        got = np.asarray(outputs.get(name, np.nan))
        if got.shape != values.shape:
            differences[name], equal = np.inf, False
            continue
        differences[name] = float(np.max(np.abs(got.astype(np.float64) - values)))
        if np.issubdtype(values.dtype, np.inexact):
            equal = equal and np.allclose(got, values, rtol=tolerance, atol=tolerance)
        else:
            equal = equal and np.array_equal(got, values)
    return {"max_difference": differences, "equal": bool(equal)}


def latency(run, observations, calls=200):
    """{"p50", "p99"}: percentiles of the seconds that a call with one observation takes."""
    seconds = []
    for i in range(calls):
        observation = observations[i % len(observations)][None]
        start = time.perf_counter()
        run(observation)
        seconds.append(time.perf_counter() - start)
    return {"p50": float(np.percentile(seconds, 50)), "p99": float(np.percentile(seconds, 99))}


def runner(directory):
    """A function from observations to the outputs of `serving_default`, as NumPy arrays."""
    directory = pathlib.Path(directory)
    if (directory / "policy.tflite").exists():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(directory / "policy.tflite"))
        signature = interpreter.get_signature_runner("serving_default")
        return lambda observations: signature(observation=observations)
    if (directory / "policy.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(directory / "policy.onnx"))
        names = [output.name for output in session.get_outputs()]
        return lambda observations: dict(
            zip(names, session.run(names, {"observation": observations}))
        )
    import tensorflow as tf

    loaded = tf.saved_model.load(str(directory))
    function = loaded.signatures["serving_default"]

    def run(observations):
        # `loaded` is named here to keep it, and with it the variables, alive.
        assert loaded is not None
        outputs = function(observation=tf.constant(observations))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def replay(run, directory, tolerance=1e-5):
    """The report on a function that runs the policy whose golden data the directory has."""
    observations, expected = read_golden(directory)
    return {
        "rows": len(observations),
        **compare(run(observations), expected, tolerance),
        "latency": latency(run, observations),
    }


if __name__ == "__main__":
    report = replay(runner(sys.argv[1]), sys.argv[1], float(sys.argv[2]))
    assert "keras_pg" not in sys.modules
    print(json.dumps(report))
