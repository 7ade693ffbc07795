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
    """({input: observations}, {output: the agent's values}) of a version directory."""
    inputs, outputs = {}, {}
    with np.load(pathlib.Path(directory) / GOLDEN) as golden:
        for name, array in golden.items():
            if name.startswith("output_"):
                outputs[name.removeprefix("output_")] = array
            else:
                inputs[name] = array
    return inputs, outputs


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


def rows(inputs):
    """How many rows each of the arrays has."""
    return len(inputs["observation"])


def latency(run, inputs, calls=200):
    """{"p50", "p99"}: percentiles of the seconds that a call with one observation takes."""
    seconds = []
    for i in range(calls):
        row = i % rows(inputs)
        one = {name: array[row : row + 1] for name, array in inputs.items()}
        start = time.perf_counter()
        run(one)
        seconds.append(time.perf_counter() - start)
    return {"p50": float(np.percentile(seconds, 50)), "p99": float(np.percentile(seconds, 99))}


def runner(directory):
    """A function from inputs to the outputs of `serving_default`: {name: NumPy array} both."""
    directory = pathlib.Path(directory)
    if (directory / "policy.tflite").exists():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(directory / "policy.tflite"))
        signature = interpreter.get_signature_runner("serving_default")
        return lambda inputs: signature(**inputs)
    if (directory / "policy.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(directory / "policy.onnx"))
        names = [output.name for output in session.get_outputs()]
        return lambda inputs: dict(zip(names, session.run(names, inputs)))
    import tensorflow as tf

    loaded = tf.saved_model.load(str(directory))
    function = loaded.signatures["serving_default"]

    def run(inputs):
        # `loaded` is named here to keep it, and with it the variables, alive.
        assert loaded is not None
        outputs = function(**{name: tf.constant(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def replay(run, directory, tolerance=1e-5):
    """The report on a function that runs the policy whose golden data the directory has."""
    inputs, expected = read_golden(directory)
    return {
        "rows": rows(inputs),
        **compare(run(inputs), expected, tolerance),
        "latency": latency(run, inputs),
    }


if __name__ == "__main__":
    report = replay(runner(sys.argv[1]), sys.argv[1], float(sys.argv[2]))
    assert "keras_pg" not in sys.modules
    print(json.dumps(report))
