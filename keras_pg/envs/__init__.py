"""Environments that TensorFlow compiles: `NativeEnv`, and those that come with keras_pg.

Each is registered with Gymnasium too, as `keras_pg/CartPole-v1` and so on.
"""

import gymnasium

from keras_pg.envs.classic_control import (
    Acrobot,
    CartPole,
    MountainCar,
    MountainCarContinuous,
    Pendulum,
)
from keras_pg.envs.frame_stack import FrameStack
from keras_pg.envs.gymnasium_adapter import NativeSingleEnv, NativeVectorEnv, to_gymnasium
from keras_pg.envs.image_tasks import Breakout, Catch
from keras_pg.envs.native_env import NativeEnv
from keras_pg.envs.small_tasks import ContextualBandit, Gridworld, TMaze

NAMES = {
    "CartPole-v1": CartPole,
    "Acrobot-v1": Acrobot,
    "Pendulum-v1": Pendulum,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "ContextualBandit-v0": ContextualBandit,
    "Gridworld-v0": Gridworld,
    "TMaze-v0": TMaze,
    "Catch-v0": Catch,
    "Breakout-v0": Breakout,
}


def make(id):
    """The native environment of an id such as `keras_pg/CartPole-v1`.

    Raises:
        gymnasium.error.NameNotFound: there is none.

    >>> make("keras_pg/CartPole-v1").max_episode_steps
    500
    """
    name = id.removeprefix("keras_pg/")
    if name not in NAMES:
        raise gymnasium.error.NameNotFound(
            f"There is no native environment {id!r}, but {', '.join(map(repr, NAMES))}, each with "
            "keras_pg/ before it."
        )
    return NAMES[name]()


def _make(name, render_mode=None):
    return NativeSingleEnv(NAMES[name](), render_mode)


def _make_vec(name, num_envs, max_episode_steps=None):
    env = NAMES[name]()
    env.max_episode_steps = max_episode_steps
    return NativeVectorEnv(env, num_envs)


for _name, _class in NAMES.items():
    gymnasium.register(
        f"keras_pg/{_name}",
        entry_point="keras_pg.envs:_make",
        vector_entry_point="keras_pg.envs:_make_vec",
        max_episode_steps=_class.max_episode_steps,
        kwargs={"name": _name},
    )

__all__ = [
    "Acrobot",
    "Breakout",
    "CartPole",
    "Catch",
    "ContextualBandit",
    "FrameStack",
    "Gridworld",
    "MountainCar",
    "MountainCarContinuous",
    "NativeEnv",
    "NativeVectorEnv",
    "Pendulum",
    "TMaze",
    "make",
    "to_gymnasium",
]
