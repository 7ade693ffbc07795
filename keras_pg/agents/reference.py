"""A reference policy, and what it costs to leave it."""

import os

import keras
import tensorflow as tf

from keras_pg import losses
from keras_pg.agents.agent import Agent
from keras_pg.networks import Actor

ESTIMATORS = {"k1": losses.kl_k1, "k2": losses.kl_k2, "k3": losses.kl_k3}


def frozen_actor(reference):
    """A copy of a policy that does not learn.

    Args:
        reference: an agent that has been built, an `Actor`, or the path of a saved agent.

    Raises:
        ValueError: it is none of these, or has no networks yet.
    """
    if isinstance(reference, str | os.PathLike):
        reference = keras.models.load_model(reference)
    actor = reference.actor if isinstance(reference, Agent) else reference
    if not isinstance(actor, Actor):
        raise ValueError(
            "reference must be an agent that has been fitted or built, a keras_pg.Actor, or the "
            f"path of a saved agent, received {reference!r}."
        )
    serialized = keras.saving.serialize_keras_object(actor)
    copy = keras.saving.deserialize_keras_object(serialized)
    copy.set_weights(actor.get_weights())
    copy.trainable = False
    return copy


def kl_to_reference(policy, estimator, parameters, log_probs, reference_parameters, actions):
    """KL(π ‖ π_ref) of each row, or an estimate of it from actions drawn by π.

    In a loss, with actions drawn by π, its gradient is in the mean that of KL(π ‖ π_ref) for
    "exact" and "k2", that of KL(π_ref ‖ π) for "k3", and zero for "k1".

    Args:
        policy: the action distribution.
        estimator: "exact", "k1", "k2" or "k3".
        parameters, reference_parameters: float [B, P], of π and of π_ref.
        log_probs: float [B], log π(a|s).
        actions: [B, ...], raw.

    Returns:
        float [B].
    """
    reference_parameters = tf.stop_gradient(reference_parameters)
    if estimator == "exact":
        return policy.kl_divergence(p=parameters, q=reference_parameters)
    log_ratio = policy.log_prob(reference_parameters, actions) - log_probs
    bound = losses.MAX_LOG_RATIO
    return ESTIMATORS[estimator](tf.clip_by_value(log_ratio, -bound, bound))
