"""Engines that run a policy while Python steps the environments.

What costs on this path is the call, not the arithmetic: a `tf.function` call takes hundreds of
microseconds, a LiteRT invocation of the same small network some ten. So the actor is converted
once, with its *weights as inputs*, and a new policy is loaded by setting those tensors.

Of large convolutions it is the arithmetic, at which LiteRT, whose fast kernels want constant
weights, is a third as fast as TensorFlow.
"""

import contextlib
import functools
import logging
import os

import numpy as np
import tensorflow as tf

from keras_pg import spaces

logger = logging.getLogger("keras_pg")

# A call with more of them than this is faster in TensorFlow, whatever it costs to call it.
MOST_CONVOLUTION_PRODUCTS = 6_000_000


@contextlib.contextmanager
def _native_messages_muted():
    """Keeps the converter's C++ log, a dozen lines about nothing, out of the progress bar.

    Its errors are Python exceptions and come through.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a process without one, such as a daemon
        yield
        return
    try:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _actions(actor, parameters, noise):
    """Raw and env-ready actions from the actor's parameters [N, P] and standard noise [N, K]."""
    actions = actor.action_distribution.sample(parameters, noise)
    return {"actions": actions, "env_actions": actor.action_distribution.to_env(actions)}


def _input_specs(actor, num_envs):
    observations = spaces.observation_specs(actor.observation_space, (num_envs,))
    noise_size = actor.action_distribution.noise_size
    return observations, tf.TensorSpec((num_envs, noise_size), tf.float32, name="noise")


class LiteRTEngine:
    """Acts through a LiteRT interpreter; raises whatever the conversion raises."""

    def __init__(self, actor, num_envs):
        from ai_edge_litert.interpreter import Interpreter

        trainable, fixed = actor.trainable_variables, actor.non_trainable_variables
        variables = {f"w{i}": variable for i, variable in enumerate([*trainable, *fixed])}

        def act(weights, observations, noise):
            values = list(weights.values())
            parameters, _ = actor.stateless_call(
                values[: len(trainable)], values[len(trainable) :], observations
            )
            return _actions(actor, parameters, noise)

        weight_specs = {k: tf.TensorSpec(v.shape, v.dtype, name=k) for k, v in variables.items()}
        function = tf.function(act, autograph=False).get_concrete_function(
            weight_specs, *_input_specs(actor, num_envs)
        )
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        # From the graph itself: by way of a SavedModel on disk it takes twice as long.
        converter.experimental_lower_to_saved_model = False
        with _native_messages_muted():
            self._interpreter = Interpreter(model_content=converter.convert(), num_threads=1)
            self._interpreter.allocate_tensors()
        inputs = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        outputs = [d["index"] for d in self._interpreter.get_output_details()]
        names = spaces.by_name(_input_specs(actor, num_envs)[0])
        self._observations = [(name, inputs[name]) for name in names]
        self._noise = inputs["noise"]
        self._actions, self._env_actions = outputs  # of a dictionary, in the order of its keys

        # Weights that acting does not need (the normalizer's float64 sums) are never copied. The
        # rest is read in one call, as one vector: further calls would cost more than the copying.
        needed = {tensor.op.name for tensor in function.inputs if tensor.consumers()}
        used = {k: variable for k, variable in variables.items() if k in needed}
        self._weight_inputs = [inputs[k] for k in used]
        self._weight_shapes = [tuple(variable.shape) for variable in used.values()]
        self._splits = np.cumsum([int(np.prod(shape)) for shape in self._weight_shapes])[:-1]
        self._read_weights = tf.function(
            lambda: tf.concat([tf.reshape(v.value, [-1]) for v in used.values()], axis=0),
            autograph=False,
        ).get_concrete_function()

    def load_weights(self):
        """Copies the actor's current weights into the interpreter."""
        values = np.split(self._read_weights().numpy(), self._splits)
        for index, shape, value in zip(self._weight_inputs, self._weight_shapes, values):
            self._interpreter.set_tensor(index, value.reshape(shape))

    def __call__(self, observations, noise):
        """(raw actions, env-ready actions) of the loaded weights, as NumPy arrays."""
        interpreter = self._interpreter
        observations = spaces.by_name(observations)
        for name, index in self._observations:
            interpreter.set_tensor(index, observations[name])
        interpreter.set_tensor(self._noise, noise)
        interpreter.invoke()
        return interpreter.get_tensor(self._actions), interpreter.get_tensor(self._env_actions)


class CompiledEngine:
    """Acts through a TensorFlow graph: any actor, at some hundred microseconds a call."""

    def __init__(self, actor, num_envs):
        self._function = tf.function(
            lambda observations, noise: _actions(actor, actor(observations), noise),
            input_signature=_input_specs(actor, num_envs),
            autograph=False,
        ).get_concrete_function()
        self.graph = self._function.graph

    def load_weights(self):
        """Nothing to do: the function reads the actor's own variables."""

    def __call__(self, observations, noise):
        """(raw actions, env-ready actions) of the actor's weights, as NumPy arrays."""
        observations = tf.nest.map_structure(tf.constant, observations)
        outputs = self._function(observations, tf.constant(noise))
        return outputs["actions"].numpy(), outputs["env_actions"].numpy()


def _convolution_products(graph):
    """How many multiplications the convolutions of a graph take, those of known shapes."""
    convolutions = (op for op in graph.get_operations() if op.type == "Conv2D")
    counts = (
        (op.outputs[0].shape.num_elements(), op.inputs[1].shape[:3].num_elements())
        for op in convolutions
    )
    return sum(outputs * products for outputs, products in counts if outputs and products)


def engine_for(actor, num_envs):
    """LiteRT where it can convert the actor and is faster, otherwise a TensorFlow function.

    That LiteRT cannot is said once in the log, with the reason.
    """
    compiled = functools.cache(lambda: CompiledEngine(actor, num_envs))
    if (
        spaces.is_image(spaces.without_mask(actor.observation_space))
        and _convolution_products(compiled().graph) > MOST_CONVOLUTION_PRODUCTS
    ):
        return compiled()
    try:
        return LiteRTEngine(actor, num_envs)
    except Exception as error:  # The converter raises many kinds; each means the same here.
        logger.warning(
            "LiteRT cannot run this actor; acting through a compiled TensorFlow function instead, "
            "which is slower. The reason: %s",
            str(error).partition("\n")[0],  # the converter appends its whole program
        )
        return compiled()
