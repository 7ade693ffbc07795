import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from ai_edge_litert.interpreter import Interpreter
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from tensorflow.core.protobuf import config_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

import keras_pg
from environments import perturb, perturbed_agent
from keras_pg import provenance, replay, saved_model, spaces, versions
from keras_pg.spaces import by_name, without_mask
from policies import (
    ALGORITHMS,
    BOUNDED,
    CARTPOLE,
    EXPORTED,
    POLICIES,
    UNBOUNDED,
    agent_of,
    raw_observations,
    rows,
    some_slow,
)


@pytest.fixture(scope="module")
def small_agent():
    """An agent that exports fast, for tests of directories."""
    return perturbed_agent(Discrete(3), Discrete(2), actor=keras_pg.mlp((2,), seed=0))


class Server:
    """Runs signatures as TensorFlow Serving does: in a session, and without checking shapes."""

    def __init__(self, directory):
        graph = tf.Graph()
        self.session = tf.compat.v1.Session(graph=graph)
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self.session, ["serve"], str(directory))
        self.signatures = meta_graph.signature_def
        self._callable = functools.cache(self._make_callable)

    def _make_callable(self, signature):
        options = config_pb2.CallableOptions(
            feed=[tensor.name for tensor in self.signatures[signature].inputs.values()],
            fetch=[tensor.name for tensor in self.signatures[signature].outputs.values()],
        )
        # Not `Session.run`, which would check the shapes.
        return self.session._make_callable_from_options(options)

    def __call__(self, signature, **inputs):
        declared = self.signatures[signature]
        assert set(inputs) == set(declared.inputs)
        outputs = self._callable(signature)(*(inputs[name] for name in declared.inputs))
        return dict(zip(declared.outputs, outputs))


@functools.cache
def server_of(directory):
    """A server that several tests may use."""
    return Server(directory)


# ------------------------------------------------------------------------------ what is served

WITHOUT_LIBRARIES = """
import importlib.machinery, json, sys

ABSENT = "keras", "tensorflow_probability", "tf_keras", "gymnasium", "keras_pg"

class Refuse:
    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not to be had here")
    def exec_module(self, module):
        pass

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, Refuse())

sys.meta_path.insert(0, Finder())
import numpy as np, tensorflow as tf

for name in ABSENT:
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(name)
for job in json.load(open(sys.argv[1])):
    policy = tf.saved_model.load(job["directory"])
    serve = policy.signatures["serving_default"]
    actions = {}
    for size in (1, 7, 64):
        inputs = dict(np.load(job["inputs"]))
        outputs = []
        for i in range(0, 1000, size):
            batch = {name: tf.constant(array[i : i + size]) for name, array in inputs.items()}
            outputs.append(serve(**batch)["action"].numpy())
        actions[str(size)] = np.concatenate(outputs)
    np.savez(job["actions"], **actions)
"""


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """{name: {batch size: actions}} from a process that has TensorFlow only."""
    directory = tmp_path_factory.mktemp("served")
    jobs = []
    for i, (name, (space, *_)) in enumerate(EXPORTED.items()):
        jobs.append(
            {
                "directory": str(exported(name)[1]),
                "inputs": str(directory / f"inputs{i}.npz"),
                "actions": str(directory / f"actions{i}.npz"),
            }
        )
        np.savez(jobs[-1]["inputs"], **by_name(raw_observations(space)))
    (directory / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-c", WITHOUT_LIBRARIES, str(directory / "jobs.json")]
    subprocess.run(command, check=True, timeout=120)
    return {name: dict(np.load(job["actions"])) for name, job in zip(EXPORTED, jobs)}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_tensorflow_alone_gives_the_agents_actions_for_raw_observations(name, exported, served):
    agent, _ = exported(name)
    space = agent.actor.action_space
    expected = agent.act(raw_observations(agent.actor.observation_space))
    assert len(np.unique(expected, axis=0)) > 1
    for actions in served[name].values():
        assert actions.dtype == expected.dtype and len(actions) == 1000
        np.testing.assert_allclose(actions, expected[: len(actions)], rtol=0, atol=1e-6)
        assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    "name", [*POLICIES, *(pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS)]
)
def test_signatures_name_and_type_their_tensors_as_documented(name, exported):
    observation_space, action_space, _, described = EXPORTED[name]
    signatures = tf.saved_model.load(str(exported(name)[1])).signatures
    masked = name.startswith("masked")
    assert set(signatures) == {"serving_default", "sample", *(["unmasked"] if masked else [])}
    parts = observation_space if masked else {"observation": observation_space}
    observations = {name: ((None, *part.shape), part.dtype) for name, part in parts.items()}
    action = ((None, *action_space.shape), action_space.dtype)
    size = {Discrete: "n", MultiDiscrete: "nvec"}.get(type(action_space))
    size = np.sum(getattr(action_space, size)) if size else action_space.shape[0]
    descriptions = {name: ((None, size), np.float32) for name in described}
    assert inputs_of(signatures["serving_default"]) == observations
    assert outputs_of(signatures["serving_default"]) == {"action": action, **descriptions}
    assert inputs_of(signatures["sample"]) == observations | {"seed": ((None, 2), np.int32)}
    if masked:
        unmasked = signatures["unmasked"]
        assert inputs_of(unmasked) == {"observation": observations["observation"]}
        assert outputs_of(unmasked) == {"action": action, **descriptions}
    assert outputs_of(signatures["sample"]) == {"action": action, "log_prob": ((None,), np.float32)}


def inputs_of(signature):
    positional, named = signature.structured_input_signature
    assert positional == ()
    return {name: (tuple(spec.shape), spec.dtype.as_numpy_dtype) for name, spec in named.items()}


def outputs_of(signature):
    outputs = signature.structured_outputs
    return {name: (tuple(spec.shape), spec.dtype.as_numpy_dtype) for name, spec in outputs.items()}


def test_the_value_is_served_if_asked_for(exported):
    agent, directory = exported("cartpole", value=True)
    observations = raw_observations(CARTPOLE, 64)
    values = server_of(directory)("value", observation=observations)
    assert set(values) == {"value"}
    np.testing.assert_allclose(values["value"], agent.critic(observations), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "a2c"])
def test_there_is_no_value_without_a_critic_of_states(name, exported, tmp_path):
    agent, _ = exported(name)
    with pytest.raises(ValueError, match="without a critic of states"):
        agent.export(tmp_path / "policy", value=True)
    assert not os.listdir(tmp_path)


def test_what_describes_the_policy_describes_it(exported):
    for name in ("cartpole", "clipped", "squashed"):
        agent, directory = exported(name)
        observations = raw_observations(agent.actor.observation_space, 20)
        outputs = server_of(directory)("serving_default", observation=observations)
        distribution = agent.actor.distribution(observations)
        if name == "cartpole":
            found = {"probabilities": distribution.probs_parameter()}
        else:
            prefix, centre, half_width = "unsquashed_", 0.0, 1.0
            if name == "clipped":  # of the action, in the units of the environment
                space = agent.actor.action_space
                prefix, centre = "", (space.low + space.high) / 2
                half_width = (space.high - space.low) / 2
            found = {
                f"{prefix}mean": centre + half_width * distribution.mean(),
                f"{prefix}standard_deviation": half_width * distribution.stddev(),
            }
        for key, expected in found.items():
            np.testing.assert_allclose(outputs[key], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cartpole", "discrete", "integers", "float64"])
def test_a_json_request_by_rows_holds_numbers_of_the_declared_type(name, exported):
    agent, directory = exported(name)
    server = server_of(directory)
    observations, seeds = (
        raw_observations(agent.actor.observation_space, 3),
        [[0, 1], [7, 8], [9, 9]],
    )
    declared = server.signatures["serving_default"].inputs["observation"].dtype

    body = json.loads(json.dumps({"instances": observations.tolist()}))
    posted = as_the_rest_api_reads(body["instances"], declared)
    np.testing.assert_array_equal(posted, observations)
    outputs = server("serving_default", observation=posted)
    np.testing.assert_allclose(outputs["action"], agent.act(observations), atol=1e-6)
    # By rows, each output must have a row for each row of the input.
    assert all(len(output) == 3 for output in outputs.values())

    rows = [{"observation": o, "seed": s} for o, s in zip(observations.tolist(), seeds)]
    rows = json.loads(json.dumps({"signature_name": "sample", "instances": rows}))["instances"]
    outputs = server(
        "sample",
        observation=as_the_rest_api_reads([row["observation"] for row in rows], declared),
        seed=as_the_rest_api_reads([row["seed"] for row in rows], tf.int32.as_datatype_enum),
    )
    assert all(len(output) == 3 for output in outputs.values())


def as_the_rest_api_reads(instances, declared):
    """An array of JSON values; TensorFlow Serving refuses 1.0 where an integer is declared."""
    dtype = tf.as_dtype(declared)
    kinds = {type(value) for value in np.array(instances, object).ravel()}
    assert kinds <= ({int} if dtype.is_integer else {int, float})
    return np.array(instances, dtype.as_numpy_dtype)


# ------------------------------------------------------------------------- what is in the artefact


def operations(graph_def):
    """Of a graph and all its functions: the operations, and the attributes that are True."""
    nodes = list(graph_def.node)
    attributes = set()
    for function in graph_def.library.function:
        nodes += function.node_def
        attributes |= {key for key, value in function.attr.items() if value.b}
    attributes |= {key for node in nodes for key, value in node.attr.items() if value.b}
    return {node.op for node in nodes}, attributes


UNSERVABLE = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


@pytest.mark.parametrize("name", ["cartpole", "clipped", "squashed"])
def test_nothing_in_the_graph_needs_python_or_xla_or_keeps_a_random_state(name, exported):
    _, directory = exported(name)
    message = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
    (meta_graph,) = message.meta_graphs
    ops, attributes = operations(meta_graph.graph_def)
    assert not ops & UNSERVABLE
    assert not any("XlaMustCompile" in key for key in attributes)
    # Noise is a hash of the seed: integer arithmetic.
    assert not {op for op in ops if "Random" in op or "Multinomial" in op}


def test_python_and_xla_would_be_found_in_a_graph():
    inner = tf.function(lambda x: x + 1, jit_compile=True)
    outer = tf.function(lambda x: tf.py_function(lambda y: y, [inner(x)], tf.float32))
    graph = outer.get_concrete_function(tf.TensorSpec([], tf.float32)).graph
    ops, attributes = operations(graph.as_graph_def())
    assert ops & UNSERVABLE and any("XlaMustCompile" in key for key in attributes)


@pytest.mark.parametrize("value", [False, True])
def test_the_variables_are_those_of_policy_and_normalizer_and_no_others(value, exported):
    agent, directory = exported("cartpole", value=value)
    prefix = str(directory / "variables" / "variables")
    stored = sorted(
        tuple(shape)
        for name, shape in tf.train.list_variables(prefix)
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    )
    networks = [agent.actor, agent.critic] if value else [agent.actor]
    expected = []
    for network in networks:
        layer = network.normalization
        statistics = [layer.offset, layer.offset_remainder, layer.scale]
        expected += [tuple(v.shape) for v in [*network.trainable_variables, *statistics]]
    assert stored == sorted(expected)
    data = directory / "variables" / "variables.data-00000-of-00001"
    numbers = sum(int(np.prod(shape)) for shape in expected)
    # float32, and the graph of objects.
    assert 4 * numbers <= data.stat().st_size < 4 * numbers + 8192


@pytest.mark.parametrize("name", ["cartpole", "integers"])
def test_warm_up_requests_are_valid_for_each_signature_and_batch_size(name, exported):
    value = name == "cartpole"
    _, directory = exported(name, value=value)
    server = server_of(directory)
    path = directory / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    seen = []
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        signature = request.model_spec.signature_name
        declared = server.signatures[signature].inputs
        assert set(request.inputs) == set(declared)
        inputs = {key: tf.make_ndarray(tensor) for key, tensor in request.inputs.items()}
        for key, array in inputs.items():
            assert tf.as_dtype(declared[key].dtype) == array.dtype
            dims = [dim.size for dim in declared[key].tensor_shape.dim]
            assert dims[0] == -1 and array.shape[1:] == tuple(dims[1:])
        (batch_size,) = {len(array) for array in inputs.values()}
        outputs = server(signature, **inputs)
        assert all(len(output) == batch_size for output in outputs.values())
        assert not any(np.isnan(output).any() for output in outputs.values())
        seen.append((signature, batch_size))
    signatures = {"serving_default", "sample"} | ({"value"} if value else set())
    sizes = [1, 2, 4, 8, 16, 32, 64]
    assert sorted(seen) == sorted((s, b) for s in signatures for b in sizes)
    assert len(records) <= 1000


@pytest.mark.parametrize("name", ["cartpole", "discrete", "integers"])
def test_the_description_names_spaces_training_and_versions(name, exported):
    agent, directory = exported(name)
    text = (directory / "assets.extra" / "policy.json").read_text()
    # Strictly JSON, which has no infinity.
    description = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    description.pop("git_commit")
    for role in ("observation_space", "action_space"):
        assert spaces.from_config(description.pop(role)) == getattr(agent.actor, role)
    assert description == {
        "algorithm": "PPO",
        "iterations": 2,
        "env_steps": 4096,
        "evaluation": None,
        "versions": provenance.library_versions(),
    }


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_description_tells_of_the_commit_it_was_made_at(tmp_path, small_agent, monkeypatch):
    def described():
        version = small_agent.export(tmp_path / "p")
        return json.loads((version / versions.DESCRIPTION).read_text())

    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    # Nothing of who runs the tests, and from where.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    assert described()["git_commit"] is None
    git("init")
    (repository / "notes").write_text("one")
    git("add", "notes")
    git("commit", "--message", "one")
    commit = git("rev-parse", "HEAD")
    assert described()["git_commit"] == commit
    (repository / "notes").write_text("two")
    assert described()["git_commit"] == commit + "-dirty"
    monkeypatch.setenv("PATH", "")
    assert described()["git_commit"] is None


# -------------------------------------------------------------------------- requests that are odd


@pytest.mark.parametrize("signature", ["serving_default", "sample", "value"])
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (2, 5), (4,), (), (2, 4, 1), (1, 2, 4)])
def test_an_observation_of_the_wrong_shape_is_an_error_even_where_it_would_broadcast(
    signature, shape, exported
):
    _, directory = exported("cartpole", value=True)
    inputs = {"observation": np.zeros(shape, np.float32)}
    if signature == "sample":
        inputs["seed"] = np.zeros((2, 2), np.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        server_of(directory)(signature, **inputs)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (3, 3), (1, 2), (2, 2)])
def test_each_of_three_observations_must_have_a_seed_of_two_integers(shape, exported):
    agent, directory = exported("clipped")
    observations = raw_observations(agent.actor.observation_space, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        server_of(directory)("sample", observation=observations, seed=np.zeros(shape, np.int32))


def test_one_observation_with_many_seeds_is_an_error(exported):
    agent, directory = exported("cartpole")
    observations = raw_observations(agent.actor.observation_space, 1)
    with pytest.raises(tf.errors.InvalidArgumentError):
        server_of(directory)("sample", observation=observations, seed=np.zeros((5, 2), np.int32))


@pytest.mark.parametrize("name", ["cartpole", "squashed", "discrete"])
def test_no_rows_give_no_rows(name, exported):
    agent, directory = exported(name)
    server = server_of(directory)
    observations = raw_observations(agent.actor.observation_space, 5)[:0]
    seeds = np.zeros((0, 2), np.int32)
    for outputs in (
        server("serving_default", observation=observations),
        server("sample", observation=observations, seed=seeds),
    ):
        assert all(len(output) == 0 for output in outputs.values())


# --------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("name", ["discrete", "squashed"])
def test_a_sample_depends_on_its_own_row_and_on_nothing_else(name, exported, tmp_path):
    agent, directory = exported(name)
    copy = shutil.copytree(directory, tmp_path / "1")
    observations = raw_observations(agent.actor.observation_space, 20)
    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (20, 2)).astype(np.int32)
    server, other = server_of(directory), Server(copy)
    together = server("sample", observation=observations, seed=seeds)
    order = np.random.default_rng(1).permutation(20)
    shuffled = other("sample", observation=observations[order], seed=seeds[order])
    for key, output in together.items():
        np.testing.assert_allclose(shuffled[key], output[order], rtol=1e-5, atol=1e-6)
        for i in range(20):
            alone = other("sample", observation=observations[i : i + 1], seed=seeds[i : i + 1])
            np.testing.assert_allclose(alone[key][0], output[i], rtol=1e-5, atol=1e-6)


def test_different_seeds_give_different_samples(exported):
    _, directory = exported("squashed")
    # Neighbours in either number, and the numbers exchanged.
    seeds = np.int32([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1], [1, 2], [-1, 0], [0, -1]])
    observations = np.zeros((len(seeds), 3), np.float32)
    log_probs = server_of(directory)("sample", observation=observations, seed=seeds)["log_prob"]
    assert len(np.unique(log_probs)) == len(seeds)


def test_sampled_discrete_actions_are_as_frequent_as_they_are_probable(exported):
    agent, directory = exported("discrete")
    count = 4000
    # Seeds as a client would count them.
    seeds = np.stack([np.full(count, 7), np.arange(count)], axis=-1).astype(np.int32)
    observations = np.full(count, 5)
    outputs = server_of(directory)("sample", observation=observations, seed=seeds)
    log_probabilities = tf.nn.log_softmax(agent.actor(observations[:1]))[0].numpy()
    probabilities = np.exp(log_probabilities)
    frequencies = np.bincount(outputs["action"] - 2, minlength=4) / count
    three_sigma = 3 * np.sqrt(probabilities * (1 - probabilities) / count)
    assert (np.abs(frequencies - probabilities) < three_sigma).all()
    np.testing.assert_allclose(
        outputs["log_prob"], log_probabilities[outputs["action"] - 2], rtol=1e-5, atol=1e-6
    )


def test_sampled_gaussian_actions_have_the_actors_density(tmp_path):
    unlimited = Box(-np.inf, np.inf, (2,))
    agent = perturbed_agent(UNBOUNDED, unlimited, actor=keras_pg.mlp((8,), seed=0))
    count = 4000
    seeds = np.stack([np.arange(count), np.zeros(count)], axis=-1).astype(np.int32)
    observations = np.ones((count, 3), np.float32)
    outputs = Server(agent.export(tmp_path))("sample", observation=observations, seed=seeds)
    distribution = agent.actor.distribution(observations)
    noise = (outputs["action"] - distribution.mean()) / distribution.stddev()
    assert (np.abs(np.mean(noise, axis=0)) < 3 / np.sqrt(count)).all()
    assert (np.abs(np.cov(noise.numpy().T) - np.eye(2)) < 3 * np.sqrt(2 / count)).all()
    np.testing.assert_allclose(
        outputs["log_prob"], distribution.log_prob(outputs["action"]), rtol=1e-4, atol=1e-4
    )


def test_the_log_probability_of_a_squashed_sample_is_that_of_the_transformed_gaussian(exported):
    agent, directory = exported("squashed")
    observations = raw_observations(UNBOUNDED, 50)
    seeds = np.arange(100, dtype=np.int32).reshape(50, 2)
    outputs = server_of(directory)("sample", observation=observations, seed=seeds)
    # In float64, since it must find u by atanh.
    mean, log_std = np.split(agent.actor(observations).numpy().astype(np.float64), 2, axis=-1)
    low, high = BOUNDED.low.astype(np.float64), BOUNDED.high.astype(np.float64)
    bijectors = [
        tfp.bijectors.Shift((low + high) / 2),
        tfp.bijectors.Scale((high - low) / 2),
        tfp.bijectors.Tanh(),
    ]
    distribution = tfp.distributions.TransformedDistribution(
        tfp.distributions.MultivariateNormalDiag(mean, np.exp(log_std)),
        tfp.bijectors.Chain(bijectors),
    )
    tanh = (outputs["action"] - (low + high) / 2) / ((high - low) / 2)
    # Nearer to the bounds the action has too few digits to tell u.
    tellable = (np.abs(tanh) < 0.99).all(axis=-1)
    assert tellable.sum() >= 10
    np.testing.assert_allclose(
        outputs["log_prob"][tellable],
        distribution.log_prob(outputs["action"].astype(np.float64))[tellable],
        rtol=1e-4,
        atol=1e-3,
    )


def test_a_global_seed_set_before_the_export_changes_no_sample(exported, tmp_path):
    agent, directory = exported("clipped")
    observations = raw_observations(UNBOUNDED, 10)
    seeds = np.arange(20, dtype=np.int32).reshape(10, 2)
    expected = server_of(directory)("sample", observation=observations, seed=seeds)
    # TensorFlow's, NumPy's and Python's.
    keras.utils.set_random_seed(123)
    outputs = Server(agent.export(tmp_path))("sample", observation=observations, seed=seeds)
    np.testing.assert_array_equal(outputs["action"], expected["action"])


# ------------------------------------------------------------------------------------ directories


def test_each_export_is_a_version_of_its_own_that_later_training_does_not_change(tmp_path):
    agent = agent_of("clipped")
    observations = raw_observations(UNBOUNDED, 64)
    expected = []
    for n in range(2):
        perturb(agent, seed=n)
        expected.append(agent.act(observations))
        assert agent.export(tmp_path / "new" / "policy") == tmp_path / "new" / "policy" / str(n + 1)
    perturb(agent, seed=2)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    for n in range(2):
        outputs = Server(tmp_path / "new" / "policy" / str(n + 1))(
            "serving_default", observation=observations
        )
        np.testing.assert_allclose(outputs["action"], expected[n], rtol=0, atol=1e-6)


def test_a_version_is_one_more_than_the_highest_integer(tmp_path, small_agent):
    for name in ("3", "00000005", "tmp_9", "12a", "-4", "7.5", "²", str(2**63)):
        (tmp_path / name).mkdir()
    (tmp_path / "3" / "mine").write_text("untouched")
    assert small_agent.export(tmp_path).name == "6"
    assert small_agent.export(str(tmp_path)).name == "7"
    assert os.listdir(tmp_path / "3") == ["mine"]


def test_the_newest_and_the_labelled_versions_are_kept(tmp_path, small_agent):
    small_agent.export(tmp_path, labels="stable")
    small_agent.export(tmp_path)
    small_agent.export(tmp_path, labels=["canary", "next"], keep=1)
    assert versions.paths(tmp_path).keys() == {1, 3}
    assert versions.labels(tmp_path) == {"stable": 1, "canary": 3, "next": 3}
    assert sorted(os.listdir(tmp_path)) == ["1", "3", "labels.json"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("saved_model", "litert"), ("saved_model", "onnx"), ("litert", "saved_model")],
)
def test_a_base_directory_holds_one_format(first, second, tmp_path, small_agent):
    small_agent.export(tmp_path, format=first)
    # Not an export: the runs of `keras-pg train` are numbered too.
    (tmp_path / "2").mkdir()
    with pytest.raises(ValueError, match=rf"1 has format '{first}'.* load '{second}'\. Export to"):
        small_agent.export(tmp_path, format=second, keep=1, labels="stable")
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    assert (tmp_path / "1" / saved_model.FORMATS[first]).exists()


def test_of_two_exports_at_once_with_other_formats_one_is_refused(
    tmp_path, small_agent, monkeypatch
):
    write = saved_model._write

    def late(agent, directory, *arguments):
        write(agent, directory, *arguments)
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "policy.tflite").touch()

    monkeypatch.setattr(saved_model, "_write", late)
    with pytest.raises(ValueError, match="1 has format 'litert'"):
        small_agent.export(tmp_path)
    assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"keep": 1.5}, {"labels": "a b"}, {"labels": [""]}])
def test_labels_and_counts_that_are_none_leave_nothing_behind(wrong, tmp_path, small_agent):
    with pytest.raises(ValueError, match=r"label|keep"):
        small_agent.export(tmp_path / "policy", **wrong)
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"labels\.json should hold labels"):
        small_agent.export(tmp_path)
    assert os.listdir(tmp_path) == ["labels.json"]


def test_a_file_that_has_a_version_number_for_a_name_is_left_alone(
    tmp_path, small_agent, monkeypatch
):
    (tmp_path / "1").write_text("mine")
    attempts, rename = [], os.rename

    def counted(*args):
        attempts.append(args)
        assert len(attempts) < 5, "it tries for ever"
        rename(*args)

    monkeypatch.setattr(os, "rename", counted)
    assert small_agent.export(tmp_path).name == "2"
    assert (tmp_path / "1").read_text() == "mine"


def test_a_version_that_somebody_else_writes_meanwhile_is_left_alone(
    tmp_path, small_agent, monkeypatch
):
    rename = os.rename

    def late(source, target):
        if not (tmp_path / "1").exists():
            (tmp_path / "1").mkdir()
            (tmp_path / "1" / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert small_agent.export(tmp_path).name == "2"
    assert os.listdir(tmp_path / "1") == ["theirs"]


def test_a_path_that_is_a_file_is_refused_and_left_alone(tmp_path, small_agent):
    path = tmp_path / "policy"
    path.write_text("mine")
    with pytest.raises(NotADirectoryError, match="policy"):
        small_agent.export(path)
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["policy"]


def test_an_unknown_format_or_an_agent_without_a_policy_is_refused(tmp_path, small_agent):
    with pytest.raises(ValueError, match="'pickle'"):
        small_agent.export(tmp_path / "policy", format="pickle")
    with pytest.raises(ValueError, match="no policy"):
        keras_pg.PPO().export(tmp_path / "policy")
    assert not os.listdir(tmp_path)


def test_a_policy_of_nan_is_refused(tmp_path):
    agent = keras_pg.PPO(seed=0)
    agent.build(Box(-1, 1, (3,)), Box(-1, 1, (2,)))
    agent.trainable_variables[0].assign(agent.trainable_variables[0] * np.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        agent.export(tmp_path / "policy")
    assert not os.listdir(tmp_path)


def fail(*args, **kwargs):
    raise PermissionError("not today")


@pytest.mark.parametrize(
    ("owner", "name", "replacement", "error"),
    [
        (replay, "compare", lambda outputs, expected: {"equal": False}, RuntimeError),
        # Looked up late: importing tf2onnx puts another module in its place.
        (lambda: tf.saved_model, "save", fail, PermissionError),
        (saved_model, "_write_warmup", fail, PermissionError),
        (os, "fsync", fail, PermissionError),
        (os, "rename", fail, PermissionError),
    ],
)
def test_an_export_that_fails_leaves_nothing_behind(
    owner, name, replacement, error, tmp_path, small_agent, monkeypatch
):
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(owner() if callable(owner) else owner, name, replacement)
    with pytest.raises(error):
        small_agent.export(tmp_path)
    assert os.listdir(tmp_path) == ["1"]


def test_a_failed_export_takes_the_directories_it_made_with_it(tmp_path, small_agent, monkeypatch):
    monkeypatch.setattr(tf.saved_model, "save", fail)
    (tmp_path / "mine").mkdir()
    with pytest.raises(PermissionError):
        small_agent.export(tmp_path / "mine" / "policies" / "cartpole")
    assert os.listdir(tmp_path) == ["mine"] and not os.listdir(tmp_path / "mine")


def test_a_version_is_on_the_disk_before_it_has_its_name(tmp_path, small_agent, monkeypatch):
    fsync, rename, events = os.fsync, os.rename, []

    def recording_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recording_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    version = small_agent.export(tmp_path)
    # TensorFlow renames its own files through the file system's C interface.
    assert events.count("rename") == 1
    flushed = {os.path.basename(path) for path in events[: events.index("rename")]}
    assert {path.name for path in version.rglob("*")} <= flushed


def test_another_user_can_read_a_version(tmp_path, small_agent):
    version = small_agent.export(tmp_path)
    for path in [version, *version.rglob("*")]:
        needed = 0o055 if path.is_dir() else 0o044
        assert path.stat().st_mode & needed == needed, path


@pytest.mark.slow
def test_a_poller_never_sees_a_version_that_is_not_complete(tmp_path, small_agent, monkeypatch):
    """Of 100 versions 10 are exported, and 90 are copies of the first, published as an export is.

    None is compared with the agent: that takes half of the time and writes nothing.
    """
    monkeypatch.setattr(replay, "runner", lambda directory: lambda observations: None)
    monkeypatch.setattr(replay, "compare", lambda outputs, expected: {"equal": True})
    seen, incomplete, done = set(), [], threading.Event()

    def poll():
        last = False
        while not last:
            last = done.is_set()  # one look more after the last export
            for name in os.listdir(tmp_path):
                if name.isdigit():
                    seen.add(name)
                    for part in ("saved_model.pb", "variables/variables.index"):
                        if not (tmp_path / name / part).exists():
                            incomplete.append(name)
            time.sleep(0.0005)

    poller = threading.Thread(target=poll)
    poller.start()
    try:
        for _ in range(10):
            small_agent.export(tmp_path)
        # File by file: making a graph takes most of an export.
        monkeypatch.setattr(
            saved_model,
            "_write",
            lambda agent, directory, *_: shutil.copytree(
                tmp_path / "1", directory, dirs_exist_ok=True
            ),
        )
        for _ in range(90):
            small_agent.export(tmp_path)
    finally:
        done.set()
        poller.join()
    assert not incomplete
    assert seen == {str(n) for n in range(1, 101)}


def test_an_export_leaves_the_random_state_of_the_spaces_alone(tmp_path, small_agent):
    # They may be the environment's own.
    both = [small_agent.actor.observation_space, small_agent.actor.action_space]
    for space in both:
        space.seed(123)
    before = [space.np_random.bit_generator.state for space in both]
    small_agent.export(tmp_path)
    assert [space.np_random.bit_generator.state for space in both] == before


@pytest.mark.parametrize("name", POLICIES)
def test_the_example_requests_are_json_of_the_declared_types(name, exported):
    agent, directory = exported(name)
    space = agent.actor.observation_space
    golden, _ = replay.read_golden(directory)
    for form, file in (("instances", "request.json"), ("inputs", "request_columns.json")):
        text = (directory / "assets.extra" / file).read_text()
        request = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert set(request) == {form}
        # Integers stay integers, truth values too, and floats keep all their digits.
        assert ("." in text) == np.issubdtype(without_mask(space).dtype, np.floating)
        assert ("true" in text) == (name in ("masked components", "masked board"))
        posted = request[form]
        if not name.startswith("masked"):
            posted = {"observation": posted}
        elif form == "instances":
            posted = {key: [row[key] for row in posted] for key in golden}
        assert posted.keys() == golden.keys()
        for key, values in posted.items():
            np.testing.assert_array_equal(np.array(values, golden[key].dtype), golden[key][:2])


# ----------------------------------------------------------------------------------------- LiteRT


@pytest.mark.parametrize("name", some_slow(POLICIES, "cartpole", "masked", "image"))
def test_litert_has_the_names_types_and_shapes_of_the_saved_model(name, exported):
    agent, directory = exported(name, format="litert")
    interpreter = Interpreter(str(directory / "policy.tflite"))
    signatures = tf.saved_model.load(str(exported(name)[1])).signatures
    assert set(interpreter.get_signature_list()) == set(signatures)

    def described(details):
        sizes = {key: (None, *detail["shape"][1:]) for key, detail in details.items()}
        return {key: (sizes[key], detail["dtype"]) for key, detail in details.items()}

    for signature, served in signatures.items():
        runner = interpreter.get_signature_runner(signature)
        assert described(runner.get_input_details()) == inputs_of(served)
        outputs = {key: dtype for key, (_, dtype) in described(runner.get_output_details()).items()}
        assert outputs == {key: dtype for key, (_, dtype) in outputs_of(served).items()}
    assert_acts_as_the_agent(directory, agent)


@pytest.mark.parametrize("name", some_slow(POLICIES, "cartpole", "masked", "image"))
def test_litert_draws_the_samples_of_the_saved_model(name, exported):
    agent, directory = exported(name, format="litert")
    interpreter = Interpreter(str(directory / "policy.tflite"))
    observations = raw_observations(agent.actor.observation_space, 50)
    seeds = np.arange(100, dtype=np.int32).reshape(50, 2) - 50
    inputs = {**by_name(observations), "seed": seeds}
    outputs = interpreter.get_signature_runner("sample")(**inputs)
    expected = server_of(exported(name)[1])("sample", **inputs)
    for key, values in expected.items():
        np.testing.assert_allclose(outputs[key], values, rtol=1e-4, atol=1e-4)


def test_litert_has_the_value_if_asked_for(exported):
    agent, directory = exported("cartpole", format="litert", value=True)
    assert_acts_as_the_agent(directory, agent)
    interpreter = Interpreter(str(directory / "policy.tflite"))
    assert set(interpreter.get_signature_list()) == {"serving_default", "sample", "value"}
    observations = raw_observations(CARTPOLE, 7)
    values = interpreter.get_signature_runner("value")(observation=observations)["value"]
    np.testing.assert_allclose(values, agent.critic(observations), rtol=1e-5, atol=1e-5)
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    assert names == {
        "policy.tflite",
        "golden.npz",
        "policy.json",
        "request.json",
        "request_columns.json",
    }


def assert_acts_as_the_agent(directory, agent):
    """The LiteRT policy gives the agent's actions, one at a time and seven."""
    interpreter = Interpreter(str(directory / "policy.tflite"))
    serve = interpreter.get_signature_runner("serving_default")
    observations = raw_observations(agent.actor.observation_space, 200)
    expected = agent.act(observations)
    for size in (1, 7):
        batches = [rows(observations, slice(i, i + size)) for i in range(0, 200, size)]
        actions = np.concatenate([serve(**by_name(batch))["action"] for batch in batches])
        assert actions.dtype == expected.dtype
        np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert replay.replay(replay.runner(directory), directory)["equal"] is True
