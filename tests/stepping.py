"""Train steps on made-up rollouts, without an environment."""

import keras
import numpy as np
import tensorflow as tf
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

import keras_pg
from keras_pg.rollouts.rollout import Rollout

OBSERVATIONS = Box(-1.0, 1.0, (3,), np.float32)
DISCRETE, CONTINUOUS = Discrete(3), Box(-0.5, 2.0, (2,), np.float32)
ACTION_SPACES = {
    "discrete": DISCRETE,
    "continuous": CONTINUOUS,
    "multidiscrete": MultiDiscrete([2, 3], start=[4, -1]),
    "multibinary": MultiBinary(3),
}


def built(algorithm, action_space=DISCRETE, learning_rate=0.1, **settings):
    """An agent on small networks, with plain gradient descent, away from its uniform start."""
    settings = {"seed": 0, "normalize_observations": False, **settings}
    agent = algorithm(keras_pg.mlp((8,), seed=1), **settings)
    agent.build(OBSERVATIONS, action_space)
    agent.compile(keras.optimizers.SGD(learning_rate), jit_compile=False)
    rng = np.random.default_rng(1)
    for variable in agent.trainable_variables:
        variable.assign_add(0.3 * rng.normal(size=variable.shape))
    return agent


def make_rollout(agent, T=8, N=4, seed=0, invalid=()):
    rng = np.random.default_rng(seed)
    observations = rng.uniform(-1, 1, (T, N, 3)).astype("float32")
    parameters = agent.actor(observations.reshape(-1, 3))
    policy = agent.actor.action_distribution
    actions = policy.sample(parameters, policy.draw_noise(rng, (T * N,))).numpy()
    valid = np.ones((T, N), bool)
    for row in invalid:
        valid[row] = False
    terminated, truncated = (rng.random((T, N)) < 0.1 for _ in range(2))
    next_observations = rng.uniform(-1, 1, (T, N, 3)).astype("float32")
    goes_on = ~(terminated | truncated)[:-1]
    next_observations[:-1][goes_on] = observations[1:][goes_on]
    return Rollout(
        observations=observations,
        actions=actions.reshape((T, N, *policy.action_shape)),
        rewards=rng.normal(size=(T, N)).astype("float32"),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        timesteps=np.zeros((T, N), np.int32),
        next_observations=next_observations,
        episode_returns=np.zeros((T, N), np.float32),
        discounted_returns=rng.normal(size=(T, N)).astype("float32"),
    )


def step(agent, rollout, eagerly=False):
    """One train step, as a graph or eagerly; the logs as floats."""
    rollout = tf.nest.map_structure(tf.constant, rollout)
    train_step = agent.train_step if eagerly else tf.function(agent.train_step, autograph=False)
    logs = train_step(rollout)
    return {name: float(value) for name, value in logs.items()}


def weights(agent):
    return [v.numpy().copy() for v in agent.trainable_variables]
