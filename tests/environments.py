"""Environments whose every transition can be written down by hand, and agents to act in them."""

import gymnasium
import numpy as np
import tensorflow as tf
from gymnasium.spaces import Box, Dict, Discrete

import keras_pg


class Clockwork(gymnasium.Env):
    """Observation (seed, episode k, step t, last action); reward 10 k + t + action / 2.

    Episode k lasts `lengths[k % len(lengths)]` steps. Episodes end in turn by termination, by
    truncation and by both. The seed is that of the last seeded reset, so an observation tells where
    it comes from. `steps` counts the calls of `step`.

    Args:
        lengths: of the episodes.
        reuse_array: return one and the same array each time, as environments may.
    """

    observation_space = Box(-3e9, 3e9, (4,))  # seeds are below 2**31
    action_space = Discrete(3)

    def __init__(self, lengths=(3,), reuse_array=False):
        self.lengths, self.reuse_array = lengths, reuse_array
        self.seed, self.episode, self.steps = 0, -1, 0
        self._array = np.zeros(4, np.float32)

    def _observe(self, action):
        array = self._array if self.reuse_array else np.zeros(4, np.float32)
        array[:] = self.seed, self.episode, self.step_in_episode, action
        return array

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.step_in_episode = 0
        return self._observe(0), {}

    def step(self, action):
        reward = 10.0 * self.episode + self.step_in_episode + action / 2
        self.steps += 1
        self.step_in_episode += 1
        ended = self.step_in_episode >= self.lengths[self.episode % len(self.lengths)]
        terminated, truncated = self.episode % 3 != 1, self.episode % 3 != 0
        return self._observe(action), reward, ended and terminated, ended and truncated, {}


class DiscreteClockwork(Clockwork):
    """Clockwork that is observed as one integer, 20 k + t."""

    observation_space = Discrete(1000)

    def _observe(self, action):
        return np.int64(20 * self.episode + self.step_in_episode)


class Faulty(Clockwork):
    """Clockwork that goes wrong in its step number `at`, counted from 0; -1 is the first reset.

    Args:
        fault: "reward" makes the reward NaN, "observation" one number of the observation infinite;
            "error" raises a ZeroDivisionError.
    """

    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self, fault="", at=0):
        super().__init__(lengths=(50,))
        self.fault, self.at = fault, at

    def _observe(self, action):
        observation = super()._observe(0)
        if self.fault == "observation" and self.steps - 1 == self.at:
            observation[2] = np.inf
        return observation

    def step(self, action):
        assert self.action_space.contains(action), action
        faulty = self.steps == self.at
        if faulty and self.fault == "error":
            raise ZeroDivisionError("as asked for")
        observation, _, *rest = super().step(0)
        return observation, np.nan if faulty and self.fault == "reward" else 1.0, *rest


class Recording(Clockwork):
    """Clockwork with any action space, that keeps the actions it is given in `received`."""

    def __init__(self, action_space, lengths=(5,)):
        super().__init__(lengths)
        self.action_space, self.received = action_space, []

    def step(self, action):
        self.received.append(action)
        return super().step(0)


class Bandit(gymnasium.Env):
    """A contextual bandit: three numbers are shown, and the reward of an arm is its number.

    `seeds` are those it was reset with.
    """

    observation_space = Box(-1.0, 1.0, (3,))
    action_space = Discrete(3)

    def __init__(self):
        self.seeds = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.shown = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        return self.shown, {}

    def step(self, action):
        return self.shown, float(self.shown[action]), True, False, {}


class Scripted(gymnasium.Env):
    """Shows zeros, or a first state, and rewards with 1; seeded with 1 it answers what it is told.

    An episode lasts 8 steps. A mask that is part of the observation makes everything legal.

    Args:
        space: its observation space; default Box(-1, 1, (2,)).
        reset: what to answer to `reset` there, as a function of the right answer.
        step: what to answer to `step` there from the fourth on, as a function of the right answer.
    """

    action_space = Discrete(2)

    def __init__(self, space=None, reset=None, step=None):
        self.observation_space = Box(-1.0, 1.0, (2,)) if space is None else space
        self.answer_reset, self.answer_step = reset, step
        self.faulty, self.t = False, 0

    def _observe(self):
        space = self.observation_space
        if isinstance(space, Dict):
            mask = np.ones(space["action_mask"].shape, np.int8)
            return {"observation": np.zeros(space["observation"].shape, "f"), "action_mask": mask}
        return (
            int(space.start) if isinstance(space, Discrete) else np.zeros(space.shape, space.dtype)
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.faulty = seed == 1
        self.t = 0
        answer = self._observe(), {}
        return self.answer_reset(answer) if self.faulty and self.answer_reset else answer

    def step(self, action):
        self.t += 1
        answer = self._observe(), 1.0, self.t == 8, False, {}
        at_fault = self.faulty and self.answer_step and self.t > 3
        return self.answer_step(answer) if at_fault else answer


def perturbed_agent(observation_space, action_space, seed=0, algorithm=keras_pg.PPO, **options):
    """A built agent with random weights and, where it normalizes, random statistics."""
    agent = algorithm(seed=seed, **options)
    agent.build(observation_space, action_space)
    perturb(agent, seed)
    return agent


def perturb(agent, seed):
    """Adds noise to the weights of actor and critic and feeds their observation statistics."""
    rng = np.random.default_rng([seed, 1])
    for network in filter(None, (agent.actor, agent.critic)):
        for variable in network.trainable_variables:
            # Of sums of many terms less, or rounding would grow with their size.
            terms = np.prod(variable.shape[:-1])
            variable.assign_add(rng.normal(0.0, min(0.3, 1.2 / terms**0.5), variable.shape))
        if network.normalization is not None:
            shape = network.normalization.shape
            sizes = 1.0 + np.arange(np.prod(shape)).reshape(shape)
            rows = rng.normal(sizes, sizes, (100, *shape))
            network.update_normalization(tf.constant(rows), tf.ones(100, tf.bool))
