"""Native environments as Gymnasium's, for whatever takes those."""

from typing import ClassVar

import gymnasium
import numpy as np
import tensorflow as tf
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from keras_pg.envs.native_env import check_native_env, seeds_of_call, step_and_reset
from keras_pg.hyperparameters import check_count


def _compiled(function, *specs):
    # Of known shapes: a function that looks them up takes twice as long to call.
    function = tf.function(function, jit_compile=True, autograph=False)
    return function.get_concrete_function(*specs)


def _compiled_reset(env, num_envs):
    """(seeds, n) → (state, observations) of N copies."""

    def reset(seeds, n):
        state = env.reset(seeds_of_call(seeds, n))
        return state, env.observe(state)

    return _compiled(reset, *_seed_specs(num_envs))


def _seed_specs(num_envs):
    return tf.TensorSpec((num_envs,), tf.int64), tf.TensorSpec((), tf.int64)


def _state_specs(reset):
    state, _ = reset.structured_outputs
    return tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), state)


def _action_specs(env, num_envs):
    return tf.TensorSpec((num_envs, *env.action_space.shape), env.action_space.dtype)


def _arrays(tensors):
    return tf.nest.map_structure(lambda x: x.numpy(), tensors)


def _one(observations, i, space):
    """Observation `i` of a batch of arrays."""
    if isinstance(observations, dict):
        return {name: _one(array, i, space[name]) for name, array in observations.items()}
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.dtype.type(observations[i])
    return observations[i]


def _check_actions(actions, space):
    actions = np.asarray(actions)
    if actions.shape != space.shape:
        raise ValueError(f"Expected actions of shape {space.shape}, received {actions.shape}.")
    return tf.constant(actions.astype(space.dtype, copy=False))


class NativeVectorEnv(gymnasium.vector.VectorEnv):
    """N copies of a native environment as a `gymnasium.vector.VectorEnv`.

    An episode that ends is followed by the next in the same step (autoreset mode SAME_STEP), and is
    truncated after the environment's `max_episode_steps`.

    Args:
        env: a `NativeEnv`.
        num_envs: N.
    """

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, env, num_envs):
        check_native_env(env, check_count("num_envs", num_envs))
        self.num_envs, self.render_mode = num_envs, None
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, num_envs)
        self.action_space = batch_space(env.action_space, num_envs)
        self._reset = _compiled_reset(env, num_envs)
        self._state = None

        def step(state, timesteps, actions, seeds, n):
            seeds = seeds_of_call(seeds, n)
            state, timesteps, step = step_and_reset(env, state, timesteps, actions, seeds)
            return state, timesteps, step._replace(rewards=tf.cast(step.rewards, tf.float64))

        self._step = _compiled(
            step,
            _state_specs(self._reset),
            tf.TensorSpec((num_envs,), tf.int32),
            _action_specs(env, num_envs),
            *_seed_specs(num_envs),
        )

    def reset(self, *, seed=None, options=None):
        """Starts all episodes anew; copy i from `seed + i`, or from the i-th of a list of seeds."""
        single = isinstance(seed, int | np.integer)
        super().reset(seed=int(seed) if single else None)
        if seed is None:
            seed = self.np_random.integers(2**31, size=self.num_envs)
        elif single:
            seed = np.arange(seed, seed + self.num_envs)
        elif len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} copies.")
        self._seeds = tf.constant(seed, tf.int64)
        self._calls = tf.constant(0, tf.int64)
        self._timesteps = tf.zeros(self.num_envs, tf.int32)
        self._state, observations = self._reset(self._seeds, self._calls)
        return _arrays(observations), {}

    def step(self, actions):
        """One step of each copy."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before the first `step`.")
        actions = _check_actions(actions, self.action_space)
        self._calls += 1
        self._state, self._timesteps, step = self._step(
            self._state, self._timesteps, actions, self._seeds, self._calls
        )
        observations, finals, rewards, terminated, truncated = _arrays(step)
        ended, info = terminated | truncated, {}
        if ended.any():
            final = np.full(self.num_envs, None, object)
            for i in np.flatnonzero(ended):
                final[i] = _one(finals, i, self.single_observation_space)
            info = {"final_obs": final, "_final_obs": ended}
        return observations, rewards, terminated, truncated, info


class NativeSingleEnv(gymnasium.Env):
    """One copy of a native environment as a `gymnasium.Env`, which truncates nothing.

    Args:
        env: a `NativeEnv`.
        render_mode: "rgb_array", where the environment has a `render`, or None.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, env, render_mode=None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'render_mode must be "rgb_array" or None, received {render_mode!r}.')
        check_native_env(env, 1)
        self._env, self.render_mode = env, render_mode
        self.metadata = {**self.metadata, "render_fps": env.render_fps}
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._reset = _compiled_reset(env, 1)
        self._state = None

        def step(state, actions, seeds, n):
            state, rewards, terminated = env.step(state, actions, seeds_of_call(seeds, n))
            return state, env.observe(state), rewards, terminated

        self._step = _compiled(
            step, _state_specs(self._reset), _action_specs(env, 1), *_seed_specs(1)
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._seeds = tf.constant(self.np_random.integers(2**31, size=1), tf.int64)
        self._calls = tf.constant(0, tf.int64)
        self._state, observations = self._reset(self._seeds, self._calls)
        return _one(_arrays(observations), 0, self.observation_space), {}

    def step(self, action):
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before the first `step`.")
        actions = _check_actions(action, self.action_space)[None]
        self._calls += 1
        self._state, observations, rewards, terminated = self._step(
            self._state, actions, self._seeds, self._calls
        )
        observation = _one(_arrays(observations), 0, self.observation_space)
        return observation, float(rewards[0]), bool(terminated[0]), False, {}

    def render(self):
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before the first `render`.")
        if self.render_mode is None:
            return None
        return self._env.render(tf.nest.map_structure(lambda x: x[0].numpy(), self._state))


def to_gymnasium(env, num_envs):
    """A native environment as a `gymnasium.vector.VectorEnv` of N copies.

    Args:
        env: a `NativeEnv`.
        num_envs: N.

    Example:
    >>> import keras_pg
    >>> env = to_gymnasium(keras_pg.envs.CartPole(), num_envs=3)
    >>> observations, _ = env.reset(seed=0)
    >>> observations.shape
    (3, 4)
    """
    return NativeVectorEnv(env, num_envs)
