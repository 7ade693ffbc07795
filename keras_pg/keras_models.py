"""Keras models as parts of an agent: what they add to its loss, and what Keras keeps of them."""

import contextlib
import warnings

import gymnasium
import keras
import numpy as np
import tensorflow as tf
from keras.src.saving.serialization_lib import ObjectSharingScope


def layer_losses(*networks):
    """The scalars that Keras's `fit` adds to a loss: regularizers, and `add_loss` in the last call.

    What networks share counts once. Layers that do not learn have no regularizer, as in Keras.

    Args:
        networks: Keras models; None for one that an agent lacks.

    Returns:
        List of (path of the variable or of the layer, float32 scalar).

    Example:
    >>> import keras
    >>> layer = keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer="l2")
    >>> model = keras.Sequential([keras.Input((2,)), layer], name="model")
    >>> [round(float(loss), 3) for _, loss in layer_losses(model, model)]
    [0.02]
    """
    networks = [network for network in networks if network is not None]
    layers = {id(layer): layer for network in networks for layer in network._flatten_layers()}
    variables = {id(v): v for network in networks for v in network.trainable_variables}
    added = [
        (layer.path or layer.name, loss)
        for layer in layers.values()
        for loss in layer._get_own_losses()
    ]
    regularized = [
        (variable.path, variable.regularizer(variable))
        for variable in variables.values()
        if variable.regularizer is not None
    ]
    return [(path, tf.cast(loss, tf.float32)) for path, loss in added + regularized]


def moved_in_training(encoder, shape):
    """Paths of the weights that a layer itself changes, and only where it is called for training.

    Args:
        encoder: a Keras model that has been built.
        shape: of one observation.

    Returns:
        Their paths, such as "batch_normalization/moving_mean"; random seeds are not among them.
    """
    weights = {id(weight) for weight in encoder.non_trainable_weights}
    if not weights:
        return []
    count = 2 * int(np.prod(shape))
    # Numbers that differ from each other, so that their mean and variance are no fixed point.
    batch = tf.reshape(tf.range(count, dtype=tf.float32) / count, (2, *shape))
    trainable = [variable.value for variable in encoder.trainable_variables]
    fixed = [variable.value for variable in encoder.non_trainable_variables]
    after = [
        encoder.stateless_call(trainable, fixed, batch, training=training)[1]
        for training in (False, True)
    ]
    return [
        variable.path
        for variable, *values in zip(encoder.non_trainable_variables, *after, strict=True)
        if id(variable) in weights and not np.array_equal(*map(np.asarray, values))
    ]


def variables_of(name, caller=None):
    """A scope in which variables get paths that begin with `name`, wherever they are made.

    `caller` is the layer that makes them itself, whose name Keras would else put there twice.
    """
    return keras.name_scope(name, caller=caller, override_parent="")


def name_variables(*networks):
    """Puts a network's name before the path of each variable, where no network's is there yet.

    Encoders that are passed in may have been built outside of any network. What networks share
    gets the name of the first of them.
    """
    names = tuple(f"{network.name}/" for network in networks)
    for network in networks:
        for variable in network.variables:
            if not variable.path.startswith(names):
                variable._path = f"{network.name}/{variable.path}"


def independent(config):
    """A configuration whose Keras objects are new ones, which share what the given ones share.

    Args:
        config: what a `get_config` returns, of objects or of what Keras has written of them.
    """
    # Where Keras loads a file, its own scope is open, and the layers are written down already.
    ours = any(isinstance(value, keras.Layer) for value in config.values())
    with ObjectSharingScope() if ours else contextlib.nullcontext():
        return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(config))


def check_network(agent, name, network):
    """Raises a `TypeError` unless it is a Keras model or layer, or None.

    Args:
        agent: the class of the agent that it was given to.
        name: of the argument.
        network: what was given. People try the environment here, or the name of a policy.
    """
    if network is None or isinstance(network, keras.Layer):
        return
    known = isinstance(network, str) and network in gymnasium.registry
    env = f'"{network}"' if known else '"CartPole-v1"'
    raise TypeError(
        f"{name}={network!r}: the {name} is a Keras model, or None for a network that is made from "
        "the environment's spaces. The environment is an argument of `fit`: "
        f"{agent.__name__}().fit({env})."
    )


def warn_of_moved_in_training(encoder, shape):
    """Warns of the layers of an encoder that would never move, and says what to use instead."""
    paths = moved_in_training(encoder, shape)
    if paths:
        layers = sorted({path.rpartition("/")[0] for path in paths})
        warnings.warn(
            f"{', '.join(layers)}: this layer changes {', '.join(paths)} only where it is called "
            "for training. Agents call their networks as for inference, so that the policy that "
            "learns is the one that acted: the weights will stay as they are. Use "
            "keras.layers.LayerNormalization or GroupNormalization instead; observations are "
            "normalized by `normalize_observations=True`. If the weights come from a trained "
            "network, set `trainable = False` on the layer.",
            stacklevel=4,
        )
