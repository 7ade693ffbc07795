"""Policies of every kind of space, and raw observations for them."""

import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

import keras_pg
from environments import perturbed_agent
from keras_pg import spaces

# As CartPole's: two dimensions have no bounds.
CARTPOLE = Box(np.float32([-4.8, -np.inf, -0.42, -np.inf]), np.float32([4.8, np.inf, 0.42, np.inf]))
UNBOUNDED = Box(-np.inf, np.inf, (3,))
BOUNDED = Box(np.float32([-0.5, 0.5]), np.float32([0.5, 1.0]))


def regularized_encoder():
    """Acts differently in training and in inference."""
    layers = [
        keras.layers.BatchNormalization(trainable=False),
        keras.layers.Dropout(0.5, seed=0),
    ]
    return keras.Sequential([*keras_pg.mlp((16,), seed=0).layers, *layers])


# name: observation space, action space, options of the agent, what `serving_default` gives beside
# the action.
PROBABILITIES = {"probabilities"}
GAUSSIAN = {"mean", "standard_deviation"}
SQUASHED = {"unsquashed_mean", "unsquashed_standard_deviation"}
POLICIES = {
    "cartpole": (CARTPOLE, Discrete(2), {}, PROBABILITIES),
    "clipped": (UNBOUNDED, BOUNDED, {}, GAUSSIAN),
    "squashed": (UNBOUNDED, BOUNDED, {"squash_actions": True}, SQUASHED),
    "discrete": (Discrete(6, start=3), Discrete(4, start=2), {}, PROBABILITIES),
    "float64": (
        Box(-np.inf, np.inf, (3,), np.float64),
        Box(-0.1, 0.1, (2,), np.float64),
        {},
        GAUSSIAN,
    ),
    "integers": (
        Box(0, 255, (3,), np.uint8),
        Discrete(3, dtype=np.int32),
        {"normalize_observations": False},
        PROBABILITIES,
    ),
    "multidiscrete": (UNBOUNDED, MultiDiscrete([2, 3], start=[4, -1]), {}, PROBABILITIES),
    "multibinary": (UNBOUNDED, MultiBinary(3), {}, PROBABILITIES),
    "masked": (
        Dict(observation=UNBOUNDED, action_mask=MultiBinary(4)),
        Discrete(4, start=2),
        {},
        PROBABILITIES,
    ),
    "masked components": (
        Dict(observation=Discrete(6), action_mask=Box(0, 1, (5,), bool)),
        MultiDiscrete([2, 3]),
        {},
        PROBABILITIES,
    ),
    "image": (
        Box(0, 255, (12, 10, 3), np.uint8),
        Discrete(3),
        {"actor": lambda: keras_pg.cnn(((4, 3, 2),), (16,), seed=0)},
        PROBABILITIES,
    ),
    "channels first": (
        Box(0, 255, (4, 36, 36), np.uint8),
        BOUNDED,
        {"actor": lambda: keras_pg.cnn(((2, 8, 4),), (8,), "tanh", seed=0)},
        GAUSSIAN,
    ),
    "masked board": (
        Dict(observation=Box(0, 1, (5, 4, 2), bool), action_mask=MultiBinary(4)),
        Discrete(4),
        {"actor": None},
        PROBABILITIES,
    ),
    "history": (
        Box(-np.inf, np.inf, (2, 2)),
        BOUNDED,
        {
            "actor": lambda: keras.Sequential(
                [keras.layers.Flatten(), *keras_pg.mlp((16, 16), seed=0).layers]
            )
        },
        GAUSSIAN,
    ),
    "state-dependent noise": (
        UNBOUNDED,
        BOUNDED,
        {
            "actor": lambda: keras_pg.Actor(
                UNBOUNDED, BOUNDED, keras_pg.mlp((16,), seed=0), state_dependent_noise=4, seed=0
            )
        },
        GAUSSIAN,
    ),
    "regularized": (UNBOUNDED, BOUNDED, {"actor": regularized_encoder}, GAUSSIAN),
}
# The same for each other algorithm, with a critic of states, with one of actions, and without one.
ALGORITHMS = {
    "reinforce": (
        CARTPOLE,
        Discrete(2),
        {"algorithm": keras_pg.REINFORCE, "advantage": "reward_to_go"},
        PROBABILITIES,
    ),
    "a2c": (UNBOUNDED, BOUNDED, {"algorithm": keras_pg.A2C, "advantage": "q"}, GAUSSIAN),
    "npg": (UNBOUNDED, BOUNDED, {"algorithm": keras_pg.NPG}, GAUSSIAN),
    "trpo": (UNBOUNDED, BOUNDED, {"algorithm": keras_pg.TRPO, "squash_actions": True}, SQUASHED),
    "mdpo": (CARTPOLE, Discrete(2), {"algorithm": keras_pg.MDPO}, PROBABILITIES),
    "grpo": (UNBOUNDED, MultiBinary(3), {"algorithm": keras_pg.GRPO}, PROBABILITIES),
}
EXPORTED = POLICIES | ALGORITHMS


def some_slow(names, *fast):
    """Parameters of a test: those names that are not `fast` make slow ones."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def agent_of(name):
    observation_space, action_space, options, _ = EXPORTED[name]
    if make_actor := options.get("actor"):
        options = {**options, "actor": make_actor()}
    agent = perturbed_agent(
        observation_space, action_space, **{"actor": keras_pg.mlp((16, 16), seed=0), **options}
    )
    # With an optimizer and its slots, as after `fit`.
    agent.compile()
    agent.iteration.assign(2)
    agent.env_steps.assign(4096)
    return agent


def raw_observations(space, count=1000):
    """Observations of the space, and others far outside of it; masks leave every component some."""
    rng = np.random.default_rng(0)
    if spaces.is_masked(space):
        mask = rng.integers(0, 2, (count, *space["action_mask"].shape))
        mask[:, rng.integers(0, 2)] = mask[:, -1] = 1
        mask = mask.astype(space["action_mask"].dtype)
        observed = raw_observations(space["observation"], count)
        return {"observation": observed, "action_mask": mask}
    if isinstance(space, Discrete):
        observations = rng.integers(space.start - 2, space.start + space.n + 2, count)
        observations[::100] = 10**6
    elif space.dtype == bool:
        observations = rng.integers(0, 2, (count, *space.shape))
    elif np.issubdtype(space.dtype, np.integer):
        observations = rng.integers(0, 256, (count, *space.shape))
    else:
        observations = rng.normal(size=(count, *space.shape))
        observations[::5] *= 100.0
        observations[::20] *= 1e6
        observations[::100] *= 1e28 if space.dtype == np.float32 else 1e290
    return observations.astype(space.dtype)


def rows(observations, index):
    """`observations[index]`, of an array or of each in a dictionary."""
    if isinstance(observations, dict):
        return {name: array[index] for name, array in observations.items()}
    return observations[index]
