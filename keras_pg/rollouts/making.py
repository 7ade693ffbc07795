"""Vector environments from whatever users call an environment, checked at the door."""

import numbers

import gymnasium
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import FlattenObservation
from gymnasium.wrappers.vector import FlattenObservation as VectorFlattenObservation

from keras_pg import advice, envs, spaces
from keras_pg.envs.native_env import Copies
from keras_pg.hyperparameters import check_count
from keras_pg.rollouts.closing import close_after
from keras_pg.rollouts.processes import ProcessVectorEnv
from keras_pg.rollouts.separate import check_is_env
from keras_pg.rollouts.serial_env import SerialVectorEnv


def make_vector_env(env, num_envs=None, vectorization="sync"):
    """A `gymnasium.vector.VectorEnv` from whatever a user calls an environment.

    Args:
        env: an environment id, a `gymnasium.Env`, a factory returning one, a vector environment, or
            a `keras_pg.envs.NativeEnv`, of which an id of keras_pg's own is one too.
        num_envs: how many copies to make of an id or a factory; default 8. An environment that
            is given as an object cannot be copied, so there it must be None or its own number.
        vectorization: "sync" steps the copies one after the other, "async" each in a process.

    Returns:
        (vector environment, or `Copies` of a native one; whether it was made here and is ours to
        close).

    Raises:
        ValueError: an argument has no meaning for this environment; agents do not take its spaces,
            and the message has the line to write; or a factory returns one environment again and
            again.
        TypeError: `env` is none of the above, or a factory returns something else.
    """
    if vectorization not in ("sync", "async"):
        raise ValueError(f'vectorization must be "sync" or "async", received {vectorization!r}.')
    if num_envs is not None:
        check_count("num_envs", num_envs)
    if isinstance(env, str) and env.startswith("keras_pg/"):
        env = envs.make(env)
    if isinstance(env, envs.NativeEnv):
        if vectorization != "sync":
            raise ValueError(
                f"vectorization={vectorization!r}: copies of {env!r} are stepped all at once, in "
                "the graph. Leave it out."
            )
        return Copies(env, num_envs or 8), True
    if isinstance(env, VectorEnv):
        _check_vector_env(env)
        if num_envs not in (None, env.num_envs):
            raise ValueError(
                f"num_envs={num_envs}, but the vector environment has {env.num_envs}. "
                "Leave num_envs out, or give an id or a factory."
            )
        return env, False
    if isinstance(env, gymnasium.Env):
        if num_envs not in (None, 1) or vectorization != "sync":
            raise ValueError(
                f"num_envs={num_envs}, vectorization={vectorization!r}: a single environment "
                "object cannot be copied. Give an id, or a factory such as `lambda: make_env()`."
            )
        check_spaces_of(env, source_of(env, env))
        factories, ours = [lambda: env], False
    elif isinstance(env, str):
        factory = _checked(lambda: gymnasium.make(env, disable_env_checker=True), env)
        factories, ours = [factory] * (num_envs or 8), True
    elif callable(env):
        factories, ours = [_checked(env, env)] * (num_envs or 8), True
    else:
        raise TypeError(
            "An environment is an id, a gymnasium.Env, a factory, a gymnasium.vector.VectorEnv or "
            f"a keras_pg.envs.NativeEnv, received {env!r}."
        )
    kind = ProcessVectorEnv if vectorization == "async" else SerialVectorEnv
    return kind(factories), ours


def _checked(factory, given):
    """A factory whose environments are such, with spaces that agents take."""

    def make():
        env = check_is_env(factory())
        try:
            check_spaces_of(env, source_of(env, given))
        except ValueError as error:
            close_after(error, env)
            raise
        return env

    return make


def check_spaces_of(env, source):
    """Raises a `ValueError` with the line to write if agents do not take an environment's spaces.

    Args:
        env: a `gymnasium.Env`, or one that has its two spaces.
        source: `keras_pg.advice.Source`, how the environment is made.
    """
    spaces.check_observation_space(env.observation_space, source)
    spaces.check_action_space(env.action_space, source)
    spaces.check_mask(env.observation_space, env.action_space)
    _check_mask_is_kept(env, source)


def _check_mask_is_kept(env, source):
    """Raises if Gymnasium's FlattenObservation makes a mask of legal actions an input."""
    while isinstance(env, gymnasium.Wrapper):
        inner = env.env.observation_space
        if isinstance(env, FlattenObservation) and advice.mask_path(inner) is not None:
            raise ValueError(advice.for_flattened_mask(inner, source))
        env = env.env


def source_of(env, given):
    """How an environment is made, as far as it is known, for the line that an error prints.

    Args:
        env: a `gymnasium.Env`.
        given: what the user gave: its id, a factory of it, or itself.

    Returns:
        `keras_pg.advice.Source`.
    """
    if isinstance(given, str):
        return advice.Source(f'gym.make("{given}")')
    spec = env.spec
    if spec is not None and not spec.additional_wrappers:
        own = {
            name: value
            for name, value in spec.kwargs.items()
            if spec.id not in gymnasium.registry
            or gymnasium.registry[spec.id].kwargs.get(name) != value
        }
        if all(isinstance(value, str | int | float | None) for value in own.values()):
            arguments = [f'"{spec.id}"', *(f"{name}={value!r}" for name, value in own.items())]
            return advice.Source(f"gym.make({', '.join(arguments)})")
    if given is env:
        return advice.Source("env", advice.OBJECT)
    name = getattr(given, "__name__", "")
    return advice.Source(f"{name if name.isidentifier() else 'make_env'}()")


def _check_vector_env(env):
    """Raises if a vector environment lacks what the collector needs, or agents its spaces."""
    for name, kind, expected in (
        ("num_envs", numbers.Integral, "a number"),
        ("single_observation_space", gymnasium.Space, "the space of one environment"),
        ("single_action_space", gymnasium.Space, "the space of one environment"),
    ):
        found = getattr(env, name, None)
        if not isinstance(found, kind):
            raise ValueError(
                f"The vector environment {type(env).__name__} has {name} = {found!r}, expected "
                f"{expected}: set num_envs, single_observation_space and single_action_space in "
                "its __init__, as gymnasium.vector.VectorEnv describes."
            )
    source = advice.Source("envs", advice.VECTOR)
    spaces.check_observation_space(env.single_observation_space, source)
    spaces.check_action_space(env.single_action_space, source)
    spaces.check_mask(env.single_observation_space, env.single_action_space)
    while isinstance(env, VectorWrapper):
        inner = env.env.single_observation_space
        if isinstance(env, VectorFlattenObservation) and advice.mask_path(inner) is not None:
            raise ValueError(advice.for_flattened_mask(inner, source))
        env = env.env
    if isinstance(env, SyncVectorEnv):
        for member in env.envs:
            _check_mask_is_kept(member, advice.Source("env", advice.OBJECT))
