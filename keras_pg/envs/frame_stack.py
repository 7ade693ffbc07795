"""Native environments that show their last observations."""

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg import spaces
from keras_pg.envs.native_env import NativeEnv
from keras_pg.hyperparameters import check_count


class FrameStack(NativeEnv):
    """An environment that shows its last observations, not only the last one.

    They are side by side along the axis of channels, of images, or else along the last, the newest
    last; grey images without such an axis get one. In the beginning of an episode the first
    observation fills the place of those before it.

    Args:
        env: a `NativeEnv` whose observations are a Box.
        stack_size: how many.

    Raises:
        TypeError: `env` is no `NativeEnv`.
        ValueError: observations are no Box; or so many images have more channels than rows or
            columns, and one of those axes would be taken for the channels.

    Example:
    >>> import keras_pg
    >>> FrameStack(keras_pg.envs.TMaze(length=3), stack_size=4).observation_space.shape
    (12,)
    """

    def __init__(self, env, stack_size):
        if not isinstance(env, NativeEnv):
            raise TypeError(
                f"FrameStack is for native environments, received {env!r}. Of an id of keras_pg's "
                "`keras_pg.envs.make` makes one; Gymnasium's have "
                "`gymnasium.wrappers.FrameStackObservation`."
            )
        space = env.observation_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.shape:
            raise ValueError(f"Only observations of a Box can be stacked, received {space}.")
        self.env, self.stack_size = env, check_count("stack_size", stack_size)
        self.action_space, self.max_episode_steps = env.action_space, env.max_episode_steps
        self.render_fps = env.render_fps
        channels_first = spaces.is_image(space) and spaces.has_channels_first(space)
        # Counted without the axis of the environments, from the end but for leading channels.
        self._axis = -len(space.shape) if channels_first else -1
        self._is_grey = spaces.is_image(space) and len(space.shape) == 2
        low, high = (
            np.concatenate([side[..., None] if self._is_grey else side] * stack_size, self._axis)
            for side in (space.low, space.high)
        )
        self.observation_space = gymnasium.spaces.Box(low, high, dtype=space.dtype.type)
        if spaces.is_image(space) and (
            spaces.has_channels_first(self.observation_space) != channels_first
        ):
            raise ValueError(
                f"stack_size={stack_size} makes images of shape {low.shape}, of which another axis "
                "would be taken for the channels, which are the shortest if they come first."
            )

    def _frame(self, state):
        frame = self.env.observe(state)
        return frame[..., None] if self._is_grey else frame

    def reset(self, seeds):
        state = self.env.reset(seeds)
        frames = tf.concat([self._frame(state)] * self.stack_size, axis=self._axis)
        return {"state": state, "frames": frames}

    def observe(self, state):
        return state["frames"]

    def render(self, state):
        return self.env.render(state["state"])

    def step(self, state, actions, seeds):
        following, rewards, terminated = self.env.step(state["state"], actions, seeds)
        newest = self._frame(following)
        sizes = [newest.shape[self._axis], -1]
        _, earlier = tf.split(state["frames"], sizes, axis=self._axis)
        frames = tf.concat([earlier, newest], axis=self._axis)
        return {"state": following, "frames": frames}, rewards, terminated
