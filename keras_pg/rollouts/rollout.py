"""The data one policy iteration learns from."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_pg import spaces


class Rollout(NamedTuple):
    """T consecutive steps of N environments, time-major.

    Everything is raw: observations before normalization, rewards before scaling, actions before
    clipping or squashing to the environment's bounds.
    """

    observations: Any  # [T, N, ...] s_t, in the space's dtype
    actions: Any  # [T, N, ...] the raw sample
    rewards: Any  # float32 [T, N] r_t
    terminated: Any  # bool [T, N] the step ended in a terminal state
    truncated: Any  # bool [T, N] the episode was cut at this step
    valid: Any  # bool [T, N] False where the environment only reset itself
    timesteps: Any  # int32 [T, N] t within the episode
    next_observations: Any  # [T, N, ...] s_{t+1}, before any reset
    episode_returns: Any  # float32 [T, N] rewards of the episode so far, r_t included
    discounted_returns: Any  # float32 [T, N] R_t = γ R_{t-1} + r_t within the episode


def rollout_specs(env, action_distribution, num_steps):
    """The `tf.TensorSpec`s of a rollout.

    Args:
        env: a `gymnasium.vector.VectorEnv`, or `Copies` of a native environment.
        action_distribution: the actor's.
        num_steps: T.

    Returns:
        `Rollout`.
    """
    leading = (num_steps, env.num_envs)
    observations = spaces.observation_specs(env.single_observation_space, leading)
    actions = (*leading, *action_distribution.action_shape)
    flag, number = tf.TensorSpec(leading, tf.bool), tf.TensorSpec(leading, tf.float32)
    return Rollout(
        observations=observations,
        actions=tf.TensorSpec(actions, action_distribution.action_dtype),
        rewards=number,
        terminated=flag,
        truncated=flag,
        valid=flag,
        timesteps=tf.TensorSpec(leading, tf.int32),
        next_observations=observations,
        episode_returns=number,
        discounted_returns=number,
    )


def draw_noise(action_distribution, rng, num_steps, num_envs):
    """Standard noise of actions, [⌈T / held_steps⌉, N, K]; zeros where `rng` is None.

    Step t has that of row t // held_steps. Zeros give the mode.
    """
    shape = action_distribution.draws(num_steps), num_envs
    if rng is None:
        return np.zeros((*shape, action_distribution.noise_size), np.float32)
    return action_distribution.draw_noise(rng, shape)


def state_values(rollout, value_of):
    """V of each step's state and of its successor, before any reset.

    Within an episode the successor is the state of the next step, which is evaluated anyway. Only
    those at which a time limit cut an episode are evaluated on their own, in a loop, one of each
    environment at a time.

    Args:
        rollout: a `Rollout` of tensors.
        value_of: (observations [B, ...], k) → float [B]; k counts its calls, int32, for those whose
            values are means of samples.

    Returns:
        (V(s_t), V(s_{t+1})), float [T, N]; 0 for terminal states.
    """
    steps, n = rollout.rewards.shape
    states = tf.nest.map_structure(
        lambda x, successors: tf.reshape(tf.concat([x, successors[-1:]], 0), [-1, *x.shape[2:]]),
        rollout.observations,
        rollout.next_observations,
    )
    values = tf.reshape(value_of(states, tf.constant(0)), (steps + 1, n))
    times = tf.range(steps)[:, None]
    cut = rollout.valid & rollout.truncated & tf.logical_not(rollout.terminated)

    def evaluate_earliest(k, left, next_values):
        t = tf.argmax(tf.cast(left, tf.int32), axis=0, output_type=tf.int32)
        rows = t * n + tf.range(n)
        successors = tf.nest.map_structure(
            lambda x: tf.gather(tf.reshape(x, [-1, *x.shape[2:]]), rows), rollout.next_observations
        )
        now = left & (times == t)
        return k + 1, left & ~now, tf.where(now, value_of(successors, k), next_values)

    _, _, next_values = tf.while_loop(
        lambda k, left, _: tf.reduce_any(left),
        evaluate_earliest,
        (tf.constant(1), cut & (times < steps - 1), values[1:]),
    )
    return values[:-1], tf.where(rollout.terminated, tf.zeros_like(next_values), next_values)


def check_finite(rollout, steps, before):
    """Raises if a rollout holds NaN or infinity, naming the earliest.

    Args:
        rollout: a `Rollout` of NumPy arrays.
        steps: how many of its steps are looked at. The observation that the next would start from
            is one of them.
        before: steps of each environment that were before the rollout.

    Raises:
        FloatingPointError: it does.
    """
    found = []
    for name, array in (
        ("reward", rollout.rewards[:steps]),
        ("observation", spaces.without_mask(rollout.next_observations)[:steps]),
        (
            "first observation of an episode",
            spaces.without_mask(rollout.observations)[: steps + 1],
        ),
    ):
        if np.issubdtype(array.dtype, np.floating):
            bad = np.argwhere(~np.isfinite(array))
            found += [(*bad[0][:2], name, array[tuple(bad[0])], bad[0][2:])] if len(bad) else []
    if found:
        t, i, name, value, index = min(found, key=lambda entry: entry[0])
        where = f", at index {tuple(map(int, index))}" if len(index) else ""
        raise FloatingPointError(
            f"The environment gave a {name} that is not finite: {value}{where}, from "
            f"environment {i} at step {before + t} since the start. Nothing was learnt "
            "from this rollout."
        )
