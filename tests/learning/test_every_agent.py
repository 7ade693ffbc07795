"""Every agent learns a task of one step, and PPO with every kind of action.

Each ends well above what a policy gets that acts at random, or does the same in every state.
"""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

import keras_pg


class Signs(gymnasium.Env):
    """The reward asks each component of the action for the sign of an observed number, 1 at most.

    Discrete actions have one component. Of a Box the squared distance from ±1 is taken off.
    """

    observation_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.state, {}

    def step(self, action):
        action = np.atleast_1d(action) - getattr(self.action_space, "start", 0)
        positive = self.state[: len(action)] > 0
        if isinstance(self.action_space, Box):
            reward = 1.0 - np.mean((action - np.where(positive, 1.0, -1.0)) ** 2)
        else:
            reward = np.mean(action == positive)
        return self.state, float(reward), True, False, {}


def trained(agent, action_space, optimizer, iterations, num_envs, num_steps):
    """The mean return of 200 episodes after training."""
    agent.compile(optimizer, jit_compile=False)
    agent.fit(
        lambda: Signs(action_space),
        num_envs=num_envs,
        num_steps=num_steps,
        epochs=1,
        steps_per_epoch=iterations,
        verbose=0,
    )
    return agent.evaluate(lambda: Signs(action_space), episodes=200, verbose=0)["episode_return"]


ACTIONS = {
    "discrete": (Discrete(2), {}),
    "multidiscrete": (MultiDiscrete([2, 2], start=[4, -1]), {}),
    "multibinary": (MultiBinary(2), {}),
    "clipped": (Box(-2.0, 2.0, (1,), np.float32), {}),
    "squashed": (Box(-2.0, 2.0, (1,), np.float32), {"squash_actions": True}),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_ppo_learns_with_every_kind_of_action(kind):
    action_space, settings = ACTIONS[kind]
    agent = keras_pg.PPO(num_minibatches=4, update_epochs=4, seed=0, **settings)
    result = trained(agent, action_space, keras.optimizers.Adam(5e-3), 25, 4, 64)
    assert result > (0.85 if isinstance(action_space, Box) else 0.93)


NATURAL = {"cg_damping": 1e-2, "num_minibatches": 4, "critic_epochs": 2}
# Agent, its settings, optimizer, iterations, environments, steps of each in an iteration.
AGENTS = {
    "REINFORCE": (keras_pg.REINFORCE, {}, keras.optimizers.Adam(0.02), 80, 64, 1),
    "A2C": (keras_pg.A2C, {}, keras.optimizers.Adam(0.01), 80, 8, 16),
    "NPG": (keras_pg.NPG, NATURAL, keras.optimizers.Adam(3e-3), 25, 4, 64),
    "TRPO": (keras_pg.TRPO, NATURAL, keras.optimizers.Adam(3e-3), 25, 4, 64),
    "MDPO": (keras_pg.MDPO, {}, keras.optimizers.Adam(0.01), 25, 4, 64),
    "GRPO": (keras_pg.GRPO, {"group_size": 8}, keras.optimizers.Adam(0.02), 80, 64, 1),
}


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_learns(name):
    make, settings, *how = AGENTS[name]
    assert trained(make(seed=0, **settings), Discrete(2), *how) > 0.9


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_compiles_and_goes_on_when_saved(name, tmp_path):
    """Its own step under XLA; the weights after two iterations, saved and loaded between or not."""
    make, settings, *_ = AGENTS[name]
    networks = {"actor": keras_pg.mlp((8,), seed=1)}
    if make is not keras_pg.GRPO:
        networks["critic"] = keras_pg.mlp((8,), seed=2)

    def fit(agent):
        shape = {"num_envs": 8, "num_steps": 4, "epochs": 1, "steps_per_epoch": 1}
        agent.fit(lambda: Signs(Discrete(2)), **shape, verbose=0)

    agent = make(**networks, seed=0, **settings)
    fit(agent)
    assert agent.jit_compile is True
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    fit(agent)
    fit(loaded)
    for one, other in zip(agent.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


class Forever(gymnasium.Env):
    """One state, reward 1, no end of its own."""

    observation_space = Discrete(1)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 1.0, False, False, {}


class Ending(Forever):
    """The same, but the fourth step is terminal."""

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.t += 1
        return 0, 1.0, self.t == 4, False, {}


@pytest.mark.parametrize("name", ["A2C", "REINFORCE", "NPG", "TRPO", "PPO", "MDPO"])
def test_time_limits_bootstrap_and_terminations_do_not(name):
    """Reward 1 for ever under a time limit is worth 1 / (1 - γ) = 10, and less if it ends."""
    settings = {
        "A2C": {"value_coef": 1.0},
        "REINFORCE": {"value_coef": 1.0},
        "NPG": {"num_minibatches": 1},
        "TRPO": {"num_minibatches": 1},
        "PPO": {"num_minibatches": 1, "value_coef": 1.0},
        "MDPO": {"value_coef": 1.0},
    }[name]

    def learned_value(env):
        agent = getattr(keras_pg, name)(gamma=0.9, gae_lambda=0.5, seed=0, **settings)
        many = name not in ("A2C", "REINFORCE")  # gradient steps an iteration, not one
        agent.compile(keras.optimizers.Adam(0.02 if many else 0.1), jit_compile=False)
        steps = 60 if many else 150
        agent.fit(env, num_envs=2, num_steps=16, epochs=1, steps_per_epoch=steps, verbose=0)
        return agent.critic(np.array([0])).numpy().item()

    limited = learned_value(lambda: gymnasium.wrappers.TimeLimit(Forever(), 4))
    assert limited == pytest.approx(10.0, rel=0.03)
    assert learned_value(Ending) < 5.0
