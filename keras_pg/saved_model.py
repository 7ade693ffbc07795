"""Policies as artefacts: raw observations in, env-ready actions out, run without keras_pg.

`export(agent, base)` writes `base/1`, then `base/2`, …: the layout TensorFlow Serving polls. A
version is written under a temporary name and renamed once, so a server sees all of it or nothing:

    saved_model.pb, variables/    the policy (format "saved_model")
    policy.tflite                 the policy (format "litert")
    policy.onnx                   the policy (format "onnx"), signature serving_default only; its
                                  metadata are what policy.json holds
    assets.extra/
        golden.npz                    observations and the agent's actions, for `verify`
        policy.json                   spaces, algorithm, training steps, what `evaluate` last said
                                      of this policy in this process, library versions, the
                                      commit of the directory it was made in
        request.json                  a body to post to TensorFlow Serving, one row an instance
        request_columns.json          the same, as one array an input
        tf_serving_warmup_requests    what TensorFlow Serving runs before it takes requests

Signatures, every tensor with a leading batch dimension:

    serving_default: observation → action (the mode), and what describes it
                     (probabilities, or mean and standard_deviation, or with squashed actions
                     unsquashed_mean and unsquashed_standard_deviation)
    sample:          observation, seed int32 [B, 2] → action, log_prob; each row is a function of
                     its own observation and seed
    value:           observation → value, if asked for

Where observations come with a mask of legal actions, `action_mask` is an input of the first two
beside `observation`, and one more signature goes without:

    unmasked:        observation → what `serving_default` gives if every action is legal

A SavedModel raises unless there is a mask for each observation, and a legal action in each. LiteRT
and ONNX cannot: a mask without a legal action gets the first action and uniform probabilities.
"""

import contextlib
import copy
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_pg import provenance, remote, replay, spaces, versions
from keras_pg._version import __version__
from keras_pg.extras import installation
from keras_pg.files import not_written
from keras_pg.hyperparameters import check_count

WARMUP = "assets.extra/tf_serving_warmup_requests"
# format: the file by which a version is known to have it
FORMATS = {"saved_model": "saved_model.pb", "litert": "policy.tflite", "onnx": "policy.onnx"}
WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def export(agent, base, *, format="saved_model", value=False, labels=(), keep=None):
    """Writes the agent's policy as the next version under `base`.

    Args:
        agent: a built agent.
        base: directory of the versions, all of one format; made if need be.
        format: "saved_model" for TensorFlow Serving, "litert" for devices, "onnx" for ONNX
            runtimes (extra `onnx`), which has no signatures: it is `serving_default`.
        value: include the critic, as signature `value`; not in ONNX.
        labels: names for this version, such as "stable", taken from the version that had them;
            `base/labels.json` holds them.
        keep: how many of the newest versions stay, and with them all that have a label; None
            removes none.

    Returns:
        `pathlib.Path` of the new version directory.

    Raises:
        ValueError: unknown format, or another than the versions under `base` have; `value` with
            ONNX, a label that is no name, or `keep` is not a positive integer.
        ImportError: a package for the format is not installed.
        NotADirectoryError: `base` is a file.
        FloatingPointError: the policy's outputs are not finite.
        RuntimeError: the written policy does not give the agent's actions.
        OSError: a file could not be written; the error names `base`.

    The warm-up requests have up to 64 rows, so a server that batches needs a `max_batch_size` of at
    least 64, or `--enable_model_warmup=false`: else it refuses the version.

    After an error nothing is left behind; but where only labelling or removing has failed, the new
    version is there. What an export leaves that is killed, the next one removes.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, received {format!r}.")
    if format == "onnx":
        if value:
            raise ValueError("ONNX has no signatures, so no value=True beside the actions.")
        _require_onnx()
    labels = versions.check_labels(labels)
    if keep is not None:
        check_count("keep", keep)
    base = check_target(base, format)
    made = [path for path in [base, *base.parents] if not path.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with versions.being_written(base) as temporary:
            _write(agent, temporary, format, value)
            observations, expected = replay.read_golden(temporary)
            report = replay.compare(replay.runner(temporary)(observations), expected)
            if not report["equal"]:
                raise RuntimeError(f"The exported policy differs from the agent: {report}.")
            temporary.chmod(0o755)
            with versions.locked(base):
                _check_format(base, format)  # Another export may have come first.
                version = versions.publish(temporary, base)
                versions.label(base, version, labels)
                if keep is not None:
                    versions.prune(base, keep)
        return version
    except OSError as error:
        raise not_written(f"A version in {base}", error) from error
    finally:
        with contextlib.suppress(OSError):  # not empty: this version, or another export's
            for path in made:
                path.rmdir()


def check_target(base, format="saved_model"):
    """`base` as a path; raises what `export` would raise of it before it writes anything.

    Raises:
        NotADirectoryError: it is a file.
        PermissionError: nothing may be written there.
        ValueError: its versions have another format, or its labels cannot be read.
    """
    base = versions.check_base(base)
    versions.labels(base)
    _check_format(base, format)
    return base


def _check_format(base, format):
    """Raises a `ValueError` if a version under `base` has another format."""
    for version in versions.paths(base).values():
        for other, file in FORMATS.items():
            if other != format and (version / file).exists():
                raise ValueError(
                    f"{version} has format {other!r}, and a base directory holds one format: what "
                    f"serves {base} could not load {format!r}. Export to another directory, such "
                    f"as {base}-{format}."
                )


# ------------------------------------------------------------------------------------- writing


def _write(agent, directory, format, value):
    description = _description(agent)
    if format == "onnx":
        _write_onnx(agent, directory / "policy.onnx", description)
    else:
        module = _Policy(agent, value)
        if format == "saved_model":
            _save(module, directory)
        else:
            (directory / "policy.tflite").write_bytes(_litert(module))
    (directory / "assets.extra").mkdir(exist_ok=True)
    if format == "saved_model":
        _write_warmup(module, directory / WARMUP)
    observations = _example_observations(agent.actor, 64)
    outputs = {k: tensor.numpy() for k, tensor in agent.described_actions(observations).items()}
    for name, values in outputs.items():
        if not np.all(np.isfinite(values)):
            raise FloatingPointError(
                f"The policy was not exported: its {name} is NaN or infinite on some observations."
            )
    golden = {f"output_{name}": values for name, values in outputs.items()}
    inputs = spaces.by_name(observations)
    np.savez(directory / replay.GOLDEN, **inputs, **golden)
    (directory / versions.DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    columns = {name: array[:2].tolist() for name, array in inputs.items()}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    if len(columns) == 1:  # which both forms leave unnamed
        rows = columns = columns["observation"]
    for body, name in (
        ({"instances": rows}, "request.json"),
        ({"inputs": columns}, "request_columns.json"),
    ):
        (directory / "assets.extra" / name).write_text(json.dumps(body) + "\n")


def _save(module, directory):
    """Writes a SavedModel. A full disk is an `OSError`, as where Python writes."""
    try:
        tf.saved_model.save(module, str(directory), signatures=module.endpoints)
    except tf.errors.OpError as error:
        # "{{node}} FILE; No space left on device [Op:SaveV2]"
        reason = error.message.rpartition("; ")[2].partition(" [Op:")[0]
        raise OSError(reason) from error


class _Policy(tf.Module):
    """The signatures of an agent, with no variable but those they read."""

    def __init__(self, agent, value):
        super().__init__(name="policy")
        actor, critic = agent.actor, agent.critic
        distribution, masked = actor.action_distribution, spaces.is_masked(actor.observation_space)
        specs = spaces.by_name(spaces.observation_specs(actor.observation_space))
        seeds = {"seed": tf.TensorSpec((None, 2), tf.int32, name="seed")}

        def checked(observation, action_mask=None):
            # The server checks no shapes, and a wrong one may broadcast without an error.
            observation = tf.ensure_shape(observation, specs["observation"].shape)
            if not masked:
                return observation
            mask, rows = specs["action_mask"], tf.shape(observation)[0]
            if action_mask is None:
                action_mask = tf.ones((rows, *mask.shape[1:]), mask.dtype)
            else:
                action_mask = tf.ensure_shape(action_mask, mask.shape)
                _assert_legal(action_mask, rows, actor.action_space)
            return {"observation": observation, "action_mask": action_mask}

        def serve(**observations):
            return agent.described_actions(checked(**observations))

        def sample(seed, **observations):
            parameters = actor(checked(**observations))
            seed = tf.ensure_shape(seed, (None, 2))
            # Another number of seeds may broadcast without an error, as above.
            tf.debugging.assert_equal(
                tf.shape(seed)[0], tf.shape(parameters)[0], "Each observation needs one seed."
            )
            actions = distribution.sample(parameters, distribution.stateless_noise(seed))
            return {
                "action": distribution.to_env(actions),
                "log_prob": distribution.log_prob(parameters, actions),
            }

        def estimate(observation):
            return {"value": critic(checked(observation))}

        # Never jit-compiled: TensorFlow Serving disables XLA and would fail every request.
        def trace(function, specs):
            return tf.function(function, autograph=False).get_concrete_function(**specs)

        self.endpoints = {
            "serving_default": trace(serve, specs),
            "sample": trace(sample, specs | seeds),
        }
        observation = {"observation": specs["observation"]}
        if masked:
            self.endpoints["unmasked"] = trace(serve, observation)
        if value:
            self.endpoints["value"] = trace(estimate, observation)
        read = {id(v) for function in self.endpoints.values() for v in function.variables}
        networks = [network for network in (actor, critic) if network is not None]
        self.read_variables = [
            v.value for network in networks for v in network.variables if id(v.value) in read
        ]


def _assert_legal(mask, rows, action_space):
    """Fails in the graph unless there is a mask for each row, with a legal choice everywhere."""
    tf.debugging.assert_equal(tf.shape(mask)[0], rows, "Each observation needs one action mask.")
    parts = tf.split(tf.cast(mask, tf.int32), spaces.action_components(action_space), axis=-1)
    some = [tf.reduce_any(tf.not_equal(part, 0), axis=-1) for part in parts]
    tf.debugging.assert_equal(tf.reduce_all(some), True, "An action mask leaves no legal action.")


def _litert(module):
    """The signatures as a LiteRT flatbuffer."""
    with tempfile.TemporaryDirectory() as directory:
        _save(module, directory)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            directory, signature_keys=list(module.endpoints)
        )
        return converter.convert()


class _Serving(keras.Model):
    """`serving_default` as a Keras model, which is what Keras's exporters take."""

    def __init__(self, agent):
        super().__init__(name="policy")
        self.agent = agent
        self.built = True

    def call(self, observations):
        return self.agent.described_actions(observations)


def _write_onnx(agent, path, description):
    """Writes `serving_default`; texts of the description as they are, all else as JSON."""
    import onnx

    signature = tf.nest.map_structure(
        lambda spec: keras.InputSpec(spec.dtype.name, spec.shape, name=spec.name),
        spaces.observation_specs(agent.actor.observation_space),
    )
    _Serving(agent).export(str(path), "onnx", input_signature=[signature], verbose=False)
    model = onnx.load(path)
    model.producer_name, model.producer_version = "keras_pg", __version__
    properties = {k: v if isinstance(v, str) else json.dumps(v) for k, v in description.items()}
    onnx.helper.set_model_props(model, properties)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _require_onnx():
    for package in ("onnx", "onnxruntime", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f'format="onnx" needs {package}: {installation("onnx")}.', name=package
            )


def _example_observations(actor, count):
    """Raw observations to compare on, the same for the same spaces; with legal actions."""
    space = actor.observation_space
    if not spaces.is_masked(space):
        return _samples(space, count)
    masks = _samples(space["action_mask"], count)
    masks[~spaces.have_legal_action(masks, actor.action_space)] = 1
    return {"observation": _samples(space["observation"], count), "action_mask": masks}


def _samples(space, count):
    # A copy: the space may be the environment's own, and its random state with it.
    space = copy.deepcopy(space)
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(count)])
    if np.issubdtype(observations.dtype, np.floating):
        # Some spaces are bounded by the largest float; a sum of such numbers is infinite.
        vast = (np.abs(space.low) > 1e6) | (np.abs(space.high) > 1e6)
        narrowed = np.clip(np.clip(observations, -1e3, 1e3), space.low, space.high)
        observations = np.where(vast, narrowed, observations)
    return observations.astype(space.dtype)


def _description(agent):
    actor = agent.actor
    return {
        "algorithm": type(agent).__name__,
        "observation_space": spaces.to_config(actor.observation_space),
        "action_space": spaces.to_config(actor.action_space),
        "iterations": int(agent.iteration.numpy()),
        "env_steps": int(agent.env_steps.numpy()),
        "evaluation": agent.evaluation(),
        "versions": provenance.library_versions(),
        "git_commit": provenance.git_commit(),
    }


# ------------------------------------------------------------------------------------- warm-up


def _write_warmup(module, path):
    """A TFRecord of `tensorflow.serving.PredictionLog`, one for each signature and batch size.

    Encoded by hand, since the package that has these messages would be needed for nothing else.
    Field numbers are those of tensorflow_serving/apis/{prediction_log,predict,model}.proto.
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, function in module.endpoints.items():
            positional, named = function.structured_input_signature
            for batch_size in WARMUP_BATCH_SIZES:
                inputs = b"".join(
                    _message(2, _message(1, spec.name.encode()) + _message(2, tensor))
                    for spec in [*positional, *named.values()]
                    for tensor in [_warmup_tensor(spec, batch_size)]
                )
                model_spec = _message(1, _message(1, b"policy") + _message(3, signature.encode()))
                predict_request = model_spec + inputs
                # PredictionLog.predict_log = 6, PredictLog.request = 1
                writer.write(_message(6, _message(1, predict_request)))


def _warmup_tensor(spec, batch_size):
    shape = [batch_size, *spec.shape[1:]]
    array = np.full(shape, spec.name == "action_mask", spec.dtype.as_numpy_dtype)
    return tf.make_tensor_proto(array).SerializeToString()


def _message(field, payload):
    """A length-delimited protobuf field."""
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _varint(number):
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


# ------------------------------------------------------------------------------------ verifying


def verify(target, *, golden=None, tolerance=1e-5):
    """Replays the golden observations of an artefact and compares the answers with the agent's.

    A directory is run in a process of its own, in which keras_pg is not imported.

    Args:
        target: a version directory; a base directory, whose newest version is taken; or the URL of
            a served policy, as `keras_pg.remote.connect` takes it.
        golden: for a URL, the directory that was exported: a version, or a base directory, of which
            the version is taken that the server answers with.
        tolerance: greatest absolute difference, plus that share of the value, that counts as equal;
            integers and booleans must be the same.

    Returns:
        {"target", "rows", "max_difference": {output: float}, "equal": bool,
        "latency": {"p50", "p99"}, in seconds a call with one observation}.

    Raises:
        FileNotFoundError: there is no artefact, or not the version that is served.
        ValueError: a URL without `golden`, or one of another kind.
        ConnectionError: the server does not answer.
        RuntimeError: the artefact cannot be run.
    """
    if "://" not in str(target):
        directory = _version_directory(pathlib.Path(target))
        return {"target": str(directory), **_replay_elsewhere(directory, tolerance)}
    if golden is None:
        raise ValueError(
            f"Verifying {target} needs golden: the directory of the policy that is served there."
        )
    run, version = remote.connect(target)
    directory = _version_directory(pathlib.Path(golden), version)
    return {"target": target, **replay.replay(run, directory, tolerance)}


def _version_directory(directory, version=None):
    """The directory itself if it is an artefact, or else that version of it, or the newest."""
    if not (directory / replay.GOLDEN).exists() and (found := versions.paths(directory)):
        directory = found.get(max(found) if version is None else version, directory)
    if not (directory / replay.GOLDEN).exists():
        wanted = "version directory" if version is None else f"version {version}, which is served"
        raise FileNotFoundError(
            f"No exported policy in {directory}: neither {replay.GOLDEN} nor a {wanted}."
        )
    return directory


def _replay_elsewhere(directory, tolerance):
    # Not beside keras_pg's modules, which could stand in for others of the same name; but with the
    # packages that this process finds, be they the user's own or on PYTHONPATH.
    command = [sys.executable, "-P", replay.__file__, str(directory), str(tolerance)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{directory} cannot be run:\n{process.stderr.strip()[-2000:]}")
    return json.loads(process.stdout.splitlines()[-1])
