"""Checks that environments are such, and that no two of them are one."""

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv

from keras_pg import envs


class SharedEnvironmentError(ValueError):
    """Two environments are one, or wrap one. Whoever raises this leaves it open."""


def check_is_env(env):
    """Returns what a factory returned if it is a `gymnasium.Env`.

    Raises:
        TypeError: it is something else; the message says what to write.
    """
    if isinstance(env, gymnasium.Env):
        return env
    if isinstance(env, VectorEnv | envs.NativeEnv):
        advice = "Give it itself in place of the factory: it is many environments already."
    elif env is None:
        advice = "A `return` may be missing."
    elif isinstance(env, type) and issubclass(env, gymnasium.Env):
        advice = f"That is a class: return an object, `{env.__name__}()`."
    elif type(env).__module__.partition(".")[0] == "gym":
        advice = (
            "That is one of the old Gym: `pip install shimmy`, and return "
            '`gymnasium.make("GymV21Environment-v0", env=env)`.'
        )
    else:
        advice = "Derive its class from gymnasium.Env."
    raise TypeError(f"A factory must return a gymnasium.Env, received {env!r}. {advice}")


def check_separate(made):
    """Raises if the last of several environments is one of the others, or wraps the same.

    Raises:
        SharedEnvironmentError: it does.
    """
    core = made[-1].unwrapped
    for i, other in enumerate(made[:-1]):
        if core is other.unwrapped:
            raise shared(core, f"environments {i} and {len(made) - 1}")


def shared(core, which):
    """The error that says that a factory has returned one environment for several."""
    return SharedEnvironmentError(
        f"The factory returned the same environment for {which}, {core!r}: one would be stepped as "
        "if it were several. Make a new one in each call, such as "
        f"`lambda: {type(core).__name__}(...)` or `lambda: gym.make(ID)`, or give the object "
        "itself in place of the factory, to step it alone."
    )


def check_apart(env, validation_env):
    """Raises if an environment in training is also one to evaluate on, wrapped or not.

    Args:
        env, validation_env: anything that `fit` takes. Of an id or a factory nothing is known
            before it is made.

    Raises:
        ValueError: they share an environment.
    """
    cores = _cores(env)
    for core in _cores(validation_env):
        if any(core is other for other in cores):
            raise ValueError(
                f"env and validation_env are the same object, {core!r}, or wrap the same: "
                "evaluating would reset the episodes that training is in. Give validation_env an "
                "environment of its own."
            )


def _cores(env):
    """The environments beneath all wrappers."""
    if isinstance(env, VectorEnv):
        vector = env.unwrapped
        members = vector.envs if isinstance(vector, SyncVectorEnv) else ()
        return [vector, *(member.unwrapped for member in members)]
    return [env.unwrapped] if isinstance(env, gymnasium.Env) else []
