"""Native environments that show their last observations."""

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg.envs.native_env import NativeEnv
from keras_pg.hyperparameters import check_count


class FrameStack(NativeEnv):
    """An environment that shows its last observations, not only the last one.

    They are side by side along the last axis, as channels if they are images, the newest last; in
    the beginning of an episode the first observation fills the place of those before it.

    Args:
        env: a `NativeEnv` whose observations are a Box.
        stack_size: how many.

    Raises:
        ValueError: observations are no Box.

    Example:
    >>> import keras_pg
    >>> FrameStack(keras_pg.envs.TMaze(length=3), stack_size=4).observation_space.shape
    (12,)
    """

    def __init__(self, env, stack_size):
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.shape:
            raise ValueError(f"Only observations of a Box can be stacked, received {space}.")
        self.env, self.stack_size = env, check_count("stack_size", stack_size)
        self.action_space, self.max_episode_steps = env.action_space, env.max_episode_steps
        low, high = (
            np.concatenate([side] * stack_size, axis=-1) for side in (space.low, space.high)
        )
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)

    def reset(self, seeds):
        state = self.env.reset(seeds)
        frames = tf.concat([self.env.observe(state)] * self.stack_size, axis=-1)
        return {"state": state, "frames": frames}

    def observe(self, state):
        return state["frames"]

    def step(self, state, actions, seeds):
        following, rewards, terminated = self.env.step(state["state"], actions, seeds)
        newest = self.env.observe(following)
        earlier = state["frames"][..., newest.shape[-1] :]
        frames = tf.concat([earlier, newest], axis=-1)
        return {"state": following, "frames": frames}, rewards, terminated
