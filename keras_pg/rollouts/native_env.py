"""Collects rollouts from native environments: a loop in the graph, no Python between two steps.

`NativeEnvCollector.rollout` is a pure function. An agent that is fitted to a native environment
calls it in its own compiled program, between `act` and learning there is nothing; `collect` calls
it alone, and gives what a collector of Gymnasium environments gives.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_pg import randomness, spaces
from keras_pg.envs.native_env import (
    NativeEnv,
    check_native_env,
    seeds_of_call,
    step_and_reset,
)
from keras_pg.rollouts.rollout import Rollout, check_finite, draw_noise, rollout_specs

# What may be wrong with a rollout, in the order in which it would come up within a step.
_FAULTS = (
    "has no legal action",
    "gave a first observation of an episode that is not finite",
    "gave a reward that is not finite",
    "gave an observation that is not finite",
)


class EnvState(NamedTuple):
    """Where N copies of a native environment are."""

    state: Any  # a nest of [N, ...], the environment's own
    timesteps: Any  # int32 [N] t within the episode
    episode_returns: Any  # float32 [N] rewards of the episode so far
    discounted_returns: Any  # float32 [N] R_t of the episode so far
    seeds: Any  # int64 [N]
    calls: Any  # int64 [] how often a reset or a step has drawn from the seeds


class NativeEnvCollector:
    """Steps copies of a native environment with a policy, and returns `Rollout`s.

    Environments keep their state between rollouts: an episode may span several.

    Args:
        env: `keras_pg.envs.native_env.Copies` of it.
        actor: the policy.
        num_steps: T, steps of each copy in a rollout.
        gamma: discount of `Rollout.discounted_returns`.
        whole_episodes: a rollout holds the first episode of each copy, begun anew for it, and rows
            after its end are invalid; an episode is truncated after T steps.

    Raises:
        ValueError: what the environment returns is not of its spaces, or its state changes shape.
    """

    in_graph = True

    def __init__(self, env, actor, *, num_steps, gamma, whole_episodes=False):
        self.env, self.actor = env, actor
        self.num_steps, self.gamma, self.whole_episodes = num_steps, gamma, whole_episodes
        self.signature = rollout_specs(env, actor.action_distribution, num_steps)
        n = env.num_envs
        numbers, integers = tf.TensorSpec((n,), tf.float32), tf.TensorSpec((n,), tf.int64)
        specs = EnvState(
            check_native_env(env.env, n),
            tf.TensorSpec((n,), tf.int32),
            numbers,
            numbers,
            integers,
            tf.TensorSpec((), tf.int64),
        )
        self._variables = tf.nest.map_structure(
            lambda spec: tf.Variable(tf.zeros(spec.shape, spec.dtype), trainable=False), specs
        )
        # As they are now: a trace holds them as constants.
        self._settings = _settings(env.env)
        self._steps = 0

    # ------------------------------------------------------------------------- pure functions

    def begin(self, seeds, calls):
        """`EnvState` of new episodes; copies of the same seed [N] begin alike."""
        n = self.env.num_envs
        return EnvState(
            self.env.env.reset(seeds_of_call(seeds, calls)),
            tf.zeros(n, tf.int32),
            tf.zeros(n),
            tf.zeros(n),
            seeds,
            calls,
        )

    def rollout(self, carried, noise):
        """T steps of each copy.

        Args:
            carried: `EnvState`.
            noise: standard noise of the actions, as of `draw_noise`.

        Returns:
            (`EnvState`, `Rollout`).
        """
        env, policy, T = self.env.env, self.actor.action_distribution, self.num_steps
        if self.whole_episodes:
            carried = self.begin(carried.seeds, carried.calls + 1)

        def goes_on(t, carried, observations, over, arrays):
            return (t < T) & ~tf.reduce_all(over) if self.whole_episodes else t < T

        def step(t, carried, observations, over, arrays):
            parameters = self.actor(observations)
            actions = policy.sample(parameters, noise[t // policy.held_steps])
            seeds = seeds_of_call(carried.seeds, carried.calls + 1)
            state, timesteps, taken = step_and_reset(
                env, carried.state, carried.timesteps, policy.to_env(actions), seeds
            )
            returns = carried.episode_returns + taken.rewards
            discounted = self.gamma * carried.discounted_returns + taken.rewards
            row = Rollout(
                observations=observations,
                actions=actions,
                rewards=taken.rewards,
                terminated=taken.terminated,
                truncated=taken.truncated,
                valid=~over,
                timesteps=carried.timesteps,
                next_observations=taken.final_observations,
                episode_returns=returns,
                discounted_returns=discounted,
            )
            arrays = tf.nest.map_structure(lambda array, x: array.write(t, x), arrays, row)
            ended = taken.terminated | taken.truncated
            nothing = tf.zeros_like(returns)
            carried = EnvState(
                state,
                timesteps,
                tf.where(ended, nothing, returns),
                tf.where(ended, nothing, discounted),
                carried.seeds,
                carried.calls + 1,
            )
            if self.whole_episodes:
                over |= ended
            return t + 1, carried, taken.observations, over, arrays

        arrays = tf.nest.map_structure(
            lambda spec: tf.TensorArray(spec.dtype, T, element_shape=spec.shape[1:]),
            self.signature,
        )
        over = tf.zeros(self.env.num_envs, tf.bool)
        first = env.observe(carried.state)
        steps, carried, _, _, arrays = tf.while_loop(
            goes_on, step, (tf.constant(0), carried, first, over, arrays)
        )
        rollout = tf.nest.map_structure(lambda array: array.stack(), arrays)
        if self.whole_episodes:
            rollout = self._first_episodes(rollout, steps)
        else:
            # A constant, and not what the loop has written: XLA then leaves out what is masked.
            rollout = rollout._replace(valid=tf.ones_like(rollout.valid))
        return carried, rollout

    def _first_episodes(self, rollout, steps):
        """Makes of the rows after the first episode copies of the first row, which are not valid.

        They go through the networks: they must be finite and in the space.
        """
        T = self.num_steps
        valid = rollout.valid & (tf.range(T)[:, None] < steps)

        def filled(x):
            return tf.where(tf.reshape(valid, [*valid.shape, *[1] * (len(x.shape) - 2)]), x, x[:1])

        rollout = tf.nest.map_structure(filled, rollout)
        last = tf.range(T)[:, None] == T - 1
        cut = last & valid & ~rollout.terminated
        return rollout._replace(valid=valid, truncated=rollout.truncated | cut)

    def fault(self, rollout):
        """Int32 [3]: what is wrong with the rollout, first at which step, in which copy; or -1s."""
        observed = spaces.without_mask(rollout.observations)
        following = spaces.without_mask(rollout.next_observations)
        nowhere = tf.zeros_like(rollout.valid)
        illegal = nowhere
        if spaces.is_masked(self.actor.observation_space):
            sizes = spaces.action_components(self.actor.action_space)
            masks = tf.split(rollout.observations["action_mask"], sizes, axis=-1)
            legal = [tf.reduce_any(tf.not_equal(tf.cast(m, tf.int32), 0), -1) for m in masks]
            illegal = rollout.valid & ~tf.reduce_all(tf.stack(legal), axis=0)
        kinds = tf.stack(
            [illegal, _not_finite(observed), _not_finite(rollout.rewards), _not_finite(following)],
            axis=-1,
        )
        _, n, k = kinds.shape
        kinds = tf.reshape(kinds, [-1])
        place = tf.argmax(tf.cast(kinds, tf.int32), output_type=tf.int32)
        found = tf.stack([place % k, place // (n * k), place // k % n])
        return tf.where(tf.gather(kinds, place), found, -1)

    # --------------------------------------------------------------------------- with variables

    def next_rollout(self, seed):
        """The next rollout, for a program that learns from it; actions are functions of `seed` [2].

        Returns:
            (`EnvState` after it, `Rollout`, its `fault`). The environments are where they were
            until `assign` is given where they are to be.
        """
        policy, n = self.actor.action_distribution, self.env.num_envs
        draws = policy.draws(self.num_steps)
        noise = policy.stateless_noise(randomness.bits(seed, (draws * n, 2)))
        after, rollout = self.rollout(self.env_state, tf.reshape(noise, (draws, n, -1)))
        return after, rollout, self.fault(rollout)

    def check(self, fault):
        """Raises for a `fault` that is one.

        Raises:
            FloatingPointError: an observation or reward is NaN or infinite.
            ValueError: a copy has no legal action.
        """
        kind, step, copy = (int(x) for x in fault)
        if kind >= 0:
            raise (FloatingPointError if kind else ValueError)(
                f"Copy {copy} of {self.env} {_FAULTS[kind]}, at step {step} of a rollout. Nothing "
                "was learnt from it."
            )

    @property
    def env_state(self):
        """`EnvState` of tensors."""
        return tf.nest.map_structure(tf.convert_to_tensor, self._variables)

    def assign(self, env_state):
        """Goes on from this `EnvState`."""
        tf.nest.map_structure(lambda variable, x: variable.assign(x), self._variables, env_state)

    def save(self):
        """Where the environments are, as arrays by name."""
        kind = _kind(self.env.env)
        arrays = {str(i): x.numpy() for i, x in enumerate(tf.nest.flatten(self._variables))}
        return {"environment": np.frombuffer(kind.encode(), np.uint8), **arrays}

    def restore(self, saved):
        """Goes on from what `save` returned, if it was of as many copies of such an environment.

        Returns:
            Whether it was.
        """
        ours = self.save()
        alike = saved.keys() == ours.keys() and all(
            saved[k].shape == x.shape and saved[k].dtype == x.dtype for k, x in ours.items()
        )
        if not alike or (saved["environment"] != ours["environment"]).any():
            return False
        for i, variable in enumerate(tf.nest.flatten(self._variables)):
            variable.assign(saved[str(i)])
        return True

    def is_like(self, other):
        """Whether the other one would collect the same: of the same environment, and as much."""
        return (
            _equal(self._settings, other._settings)
            and self.signature == other.signature
            and (self.actor, self.gamma, self.whole_episodes)
            == (other.actor, other.gamma, other.whole_episodes)
        )

    # ------------------------------------------------ as collectors of Gymnasium environments do

    def reset(self, seed, group_size=1):
        """Starts new episodes; copy i is seeded with `seed + i // group_size`."""
        seeds = int(seed) + np.arange(self.env.num_envs) // group_size
        # Not compiled: tracing it takes longer than the hundred operations that a reset is.
        self.assign(self.begin(tf.constant(seeds, tf.int64), tf.constant(0, tf.int64)))
        self._steps = 0

    @functools.cached_property
    def _collect(self):
        def collect(noise):
            after, rollout = self.rollout(self.env_state, noise)
            self.assign(after)
            return rollout

        return tf.function(collect, jit_compile=True, autograph=False)

    def collect(self, rng=None):
        """The next T steps under the actor's current weights, as NumPy arrays.

        Args:
            rng: a `numpy.random.Generator` for the actions' noise; None acts deterministically.

        Raises:
            FloatingPointError: an observation or reward is NaN or infinite. The message names the
                field, the copy's index and the step.
        """
        policy = self.actor.action_distribution
        noise = draw_noise(policy, rng, self.num_steps, self.env.num_envs)
        rollout = tf.nest.map_structure(lambda x: x.numpy(), self._collect(tf.constant(noise)))
        check_finite(rollout, self.num_steps, self._steps)
        self._steps += self.num_steps
        return rollout


def _not_finite(x):
    """Bool [T, N]: whether a step of `x` [T, N, ...] holds NaN or infinity."""
    if not x.dtype.is_floating:
        return tf.zeros(x.shape[:2], tf.bool)
    return tf.reduce_any(~tf.math.is_finite(x), axis=range(2, len(x.shape)))


def _settings(env):
    """The class of an environment and its attributes, among them environments within it."""
    attributes = {
        name: _settings(value) if isinstance(value, NativeEnv) else value
        for name, value in vars(env).items()
    }
    return type(env), attributes


def _kind(env):
    """The names of an environment's class and of those within it."""
    within = (_kind(value) for value in vars(env).values() if isinstance(value, NativeEnv))
    return " ".join([f"{type(env).__module__}.{type(env).__qualname__}", *within])


def _equal(settings, others):
    """Whether they are, as far as they can be compared: arrays cannot."""
    try:
        return bool(settings == others)
    except ValueError:
        return False
