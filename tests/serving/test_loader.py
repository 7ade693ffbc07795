"""Exported policies in a process without Python, by the calls that TensorFlow Serving makes."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_pg.spaces import by_name
from policies import CARTPOLE, EXPORTED, raw_observations, rows

LOADER = pathlib.Path(__file__).parents[2] / "export" / "loader"
SIZES = 1, 7, 64

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="building the loader needs a C++ compiler: install g++ or set CXX",
)


@pytest.fixture(scope="session")
def loader(tmp_path_factory):
    """The compiled program; what another worker of this test run has compiled is taken."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    program = directory / "savedmodel_run"
    if not program.exists():
        half_written = directory / f"savedmodel_run.{os.getpid()}"
        subprocess.run([LOADER / "build.sh", sys.executable, half_written], check=True)
        half_written.rename(program)
    return program


def run(loader, policy, directory, requests, options=()):
    """The program's process, and {output: array} for each request (signature, inputs)."""
    arguments, outs = [], []
    for i, (signature, inputs) in enumerate(requests):
        outs.append(directory / str(i))
        arguments += ["--", signature, str(outs[-1])]
        for name, values in inputs.items():
            path = directory / f"{i}_{name}.pb"
            path.write_bytes(tf.make_tensor_proto(values).SerializeToString())
            arguments.append(f"{name}={path}")
    process = subprocess.run(
        [loader, *options, policy, *arguments], capture_output=True, text=True, timeout=120
    )
    return process, [{p.stem: read(p) for p in sorted(out.glob("*.pb"))} for out in outs]


def read(path):
    tensor = tf.make_tensor_proto(0)
    tensor.ParseFromString(path.read_bytes())
    return tf.make_ndarray(tensor)


@pytest.mark.parametrize("name", EXPORTED)
def test_every_kind_of_policy_gives_the_agents_answers(name, loader, exported, tmp_path):
    agent, policy = exported(name)
    observations = raw_observations(agent.actor.observation_space, 64)
    seeds = np.random.default_rng(1).integers(-(2**31), 2**31, (64, 2)).astype(np.int32)
    requests = [
        (signature, by_name(rows(observations, slice(n))) | {k: s[:n] for k, s in more.items()})
        for signature, more in (("serving_default", {}), ("sample", {"seed": seeds}))
        for n in SIZES
    ]
    process, answers = run(loader, policy, tmp_path, requests)
    assert process.returncode == 0, process.stderr
    expected = {k: tensor.numpy() for k, tensor in agent.described_actions(observations).items()}
    sample = tf.saved_model.load(str(policy)).signatures["sample"]
    inputs = by_name(observations) | {"seed": seeds}
    drawn = sample(**{key: tf.constant(values) for key, values in inputs.items()})
    for n, modes, samples in zip(SIZES, answers[:3], answers[3:], strict=True):
        assert modes.keys() == expected.keys() and samples.keys() == {"action", "log_prob"}
        for output, values in expected.items():
            assert modes[output].dtype == values.dtype
            np.testing.assert_allclose(modes[output], values[:n], rtol=1e-5, atol=1e-6)
        acted = agent.act(rows(observations, slice(n)))
        np.testing.assert_allclose(modes["action"], acted, atol=1e-6)
        # A row's sample does not depend on what else is in the batch, but for rounding.
        for output, values in drawn.items():
            np.testing.assert_allclose(samples[output], values[:n], rtol=1e-4, atol=1e-5)
        assert all(agent.actor.action_space.contains(action) for action in samples["action"])


def test_the_value_is_the_critics(loader, exported, tmp_path):
    agent, policy = exported("cartpole", value=True)
    observations = raw_observations(CARTPOLE, 64)
    requests = [("value", {"observation": observations[:n]}) for n in SIZES]
    process, answers = run(loader, policy, tmp_path, requests)
    assert process.returncode == 0, process.stderr
    expected = agent.critic(observations)
    for n, answer in zip(SIZES, answers, strict=True):
        assert answer.keys() == {"value"}
        np.testing.assert_allclose(answer["value"], expected[:n], rtol=1e-5, atol=1e-5)


def test_signatures_are_listed_and_timed(loader, exported, tmp_path):
    _, policy = exported("cartpole", value=True)
    listed = run(loader, policy, tmp_path, [])[0].stdout.splitlines()
    assert "signature\tvalue\ttensorflow/serving/predict" in listed
    assert "input\tsample\tseed\tDT_INT32 [-1,2]" in listed
    assert "output\tserving_default\tprobabilities\tDT_FLOAT [-1,2]" in listed
    requests = [("value", {"observation": np.zeros((1, 4), np.float32)})]
    timed, _ = run(loader, policy, tmp_path, requests, options=["--repeat=10"])
    assert 0.0 < float(timed.stdout.splitlines()[-1].removeprefix("mean_us\t")) < 1e6


@pytest.mark.parametrize(
    "signature, observation, message",
    [
        ("nope", np.zeros((1, 4), np.float32), "FAILED_PRECONDITION"),
        ("serving_default", np.zeros((1, 1), np.float32), "INVALID_ARGUMENT"),
        ("serving_default", np.zeros(4, np.float32), "INVALID_ARGUMENT"),
        ("serving_default", np.zeros((1, 4), np.float64), "INVALID_ARGUMENT"),
    ],
)
def test_a_wrong_request_fails_with_the_servers_code(
    signature, observation, message, loader, exported, tmp_path
):
    _, policy = exported("cartpole")
    process, _ = run(loader, policy, tmp_path, [(signature, {"observation": observation})])
    assert process.returncode == 3 and f"ERROR {message}" in process.stderr


def test_what_would_fail_in_the_server_fails_here(loader, tmp_path):
    """XLA is off there, as here: such a policy loads, and fails each request."""
    module = tf.Module()
    compiled = tf.function(lambda x: 2.0 * x, jit_compile=True)
    module.serve = tf.function(
        lambda observation: {"action": compiled(observation)},
        input_signature=[tf.TensorSpec((None, 2), tf.float32, name="observation")],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.serve)
    request = [("serving_default", {"observation": np.ones((1, 2), np.float32)})]
    process, _ = run(loader, tmp_path / "1", tmp_path, request)
    assert process.returncode == 3 and "XLA compilation disabled" in process.stderr
    process, (answer,) = run(loader, tmp_path / "1", tmp_path, request, options=["--xla"])
    assert process.returncode == 0 and answer["action"].tolist() == [[2.0, 2.0]]
