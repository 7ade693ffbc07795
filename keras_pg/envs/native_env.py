"""The contract of environments that TensorFlow compiles, and the one way to step them."""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_pg import spaces
from keras_pg.hyperparameters import check_count


class NativeEnv:
    """An environment as pure functions of N copies at once, whose state is passed in and out.

    A subclass sets the two spaces and writes the three functions. They are traced, so they hold
    TensorFlow operations only, and keep nothing in `self`. A state is any nest of tensors with a
    leading axis of N. What is random is a function of `seeds`, see `keras_pg.randomness`.

    Who steps the environment resets it: `step` neither resets a copy nor counts its steps. Agents
    are fitted to it as it is, `agent.fit(MyEnv(), num_envs=64)`.

    Attributes:
        observation_space, action_space: Gymnasium spaces of one copy.
        max_episode_steps: after so many steps an episode is truncated; None never truncates.
        render_fps: steps a second in a video.

    Example:
    >>> import gymnasium, tensorflow as tf
    >>> from keras_pg import randomness
    >>> class Guess(NativeEnv):
    ...     observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    ...     action_space = gymnasium.spaces.Discrete(2)
    ...
    ...     def reset(self, seeds):
    ...         return randomness.uniform(seeds, (1,))
    ...
    ...     def observe(self, state):
    ...         return state
    ...
    ...     def step(self, state, actions, seeds):
    ...         right = tf.equal(actions == 1, state[:, 0] > 0.5)
    ...         return state, tf.cast(right, tf.float32), tf.ones_like(right)
    >>> env = Guess()
    >>> state = env.reset(tf.constant([[0, 0], [1, 0], [2, 0]], tf.int64))
    >>> _, rewards, terminated = env.step(state, tf.constant([0, 0, 0]), None)
    >>> rewards.shape, terminated.numpy().tolist()
    (TensorShape([3]), [True, True, True])
    >>> import keras_pg
    >>> history = keras_pg.A2C(seed=0).fit(env, num_envs=64, epochs=1, steps_per_epoch=1, verbose=0)
    >>> history.history["episode_length"]
    [1.0]
    """

    observation_space = None
    action_space = None
    max_episode_steps = None
    render_fps = 10

    def reset(self, seeds):
        """First states of N episodes.

        Args:
            seeds: int64 [N, 2].
        """
        raise NotImplementedError

    def observe(self, state):
        """Observations [N, ...] of the states, in the space's dtype."""
        raise NotImplementedError

    def step(self, state, actions, seeds):
        """One step of each copy.

        Args:
            state: of N copies.
            actions: env-ready, [N, ...].
            seeds: int64 [N, 2], other ones in each step.

        Returns:
            (state, rewards float32 [N], terminated bool [N]).
        """
        raise NotImplementedError

    def render(self, state):
        """A picture of one copy, uint8 [H, W, 3], for videos. Optional, and never compiled.

        Args:
            state: of that copy alone, a nest of NumPy arrays without the leading axis.
        """
        raise NotImplementedError(f"{type(self).__name__} draws nothing: it has no `render`.")


class Copies:
    """N copies of a native environment, as what trains or evaluates on them asks for.

    Args:
        env: a `NativeEnv`.
        num_envs: N.
    """

    def __init__(self, env, num_envs):
        self.env, self.num_envs = env, num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space

    def close(self):
        """Nothing: there is nothing to be closed."""

    def __repr__(self):
        return type(self.env).__name__


def seeds_of_call(seeds, n):
    """Copy i draws the random numbers of its n-th call from (seeds[i], n), int64 [N, 2].

    Counted from 2³¹: an agent's own random numbers are drawn from (its seed, its iteration).
    """
    return tf.stack([seeds, tf.broadcast_to(n + 2**31, tf.shape(seeds))], axis=-1)


def check_native_env(env, num_envs):
    """The `tf.TensorSpec`s of N copies' state.

    Raises:
        ValueError: what the environment returns has another shape or dtype than it should, or its
            state another one after a step; or `max_episode_steps` is not at least 1. No episode is
            played: only shapes are looked at.
    """

    def trace(function, *specs):
        function = tf.function(function, autograph=False).get_concrete_function(*specs)
        return tf.nest.map_structure(
            lambda x: tf.TensorSpec(x.shape, x.dtype), function.structured_outputs
        )

    def expect(what, received, expected):
        def spec(x):
            return tuple(x.shape), x.dtype

        tf.nest.assert_same_structure(received, expected)
        pairs = zip(tf.nest.flatten(received), tf.nest.flatten(expected), strict=True)
        for one, other in pairs:
            if spec(one) != spec(other):
                raise ValueError(
                    f"{type(env).__name__}.{what} of shape {tuple(one.shape)} and dtype "
                    f"{one.dtype.name}, expected {tuple(other.shape)} and {other.dtype.name}."
                )

    if env.max_episode_steps is not None:
        check_count(f"{type(env).__name__}.max_episode_steps", env.max_episode_steps)
    n, seeds = num_envs, tf.TensorSpec((num_envs, 2), tf.int64)
    state = trace(env.reset, seeds)
    expect(
        "observe returns observations",
        trace(env.observe, state),
        spaces.observation_specs(env.observation_space, (n,)),
    )
    actions = tf.TensorSpec((n, *env.action_space.shape), env.action_space.dtype)
    after, rewards, terminated = trace(env.step, state, actions, seeds)
    expect("step returns a state with a part", after, state)
    expect("step returns rewards", rewards, tf.TensorSpec((n,), tf.float32))
    expect("step returns terminated", terminated, tf.TensorSpec((n,), tf.bool))
    return state


class Step(NamedTuple):
    """What a step of N copies gives, where those whose episode has ended begin the next."""

    observations: Any  # [N, ...] the next step starts from
    final_observations: Any  # [N, ...] this step led to, before any reset
    rewards: Any  # float32 [N]
    terminated: Any  # bool [N]
    truncated: Any  # bool [N] after `max_episode_steps`


def step_and_reset(env, state, timesteps, actions, seeds):
    """Steps N copies, and starts new episodes where one has ended.

    Args:
        env: a `NativeEnv`.
        state: of N copies.
        timesteps: int32 [N], steps of each copy's episode so far.
        actions: env-ready, [N, ...].
        seeds: int64 [N, 2], other ones in each step.

    Returns:
        (state, timesteps, `Step`).
    """
    after, rewards, terminated = env.step(state, actions, seeds)
    timesteps += 1
    truncated = tf.zeros_like(terminated)
    if env.max_episode_steps is not None:
        truncated = timesteps >= env.max_episode_steps
    ended = terminated | truncated
    first = env.reset(tf.bitwise.invert(seeds))

    def of_the_next_episode(first, after):
        return tf.where(tf.reshape(ended, [-1] + [1] * (len(after.shape) - 1)), first, after)

    state = tf.nest.map_structure(of_the_next_episode, first, after)
    step = Step(env.observe(state), env.observe(after), rewards, terminated, truncated)
    return state, tf.where(ended, 0, timesteps), step
