"""Environments as the command line names them."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable

import gymnasium

from keras_pg import envs


class Environment:
    """The environment of an id and of keyword arguments, made once to see that it can be.

    Args:
        id: registered with Gymnasium, or `module:ID`, where importing the module registers it; the
            working directory is looked in too.
        arguments: keyword arguments of the environment. `max_episode_steps` is the time limit.

    Attributes:
        observation_space: Gymnasium space.
        max_episode_steps: the time limit; None without one.

    Raises:
        ValueError: no such id; the error has the nearest.
        TypeError: the environment has no such argument.
    """

    def __init__(self, id: str, arguments: dict[str, object]):
        self.id, self.arguments = id, arguments
        if ":" in id and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        if id.startswith("keras_pg/"):
            env = self._native(arguments.get("max_episode_steps"))
            self.max_episode_steps = env.max_episode_steps
        else:
            with contextlib.closing(self._gymnasium()) as env:
                self.max_episode_steps = env.spec.max_episode_steps
        self.observation_space = env.observation_space

    def copies(self, max_episode_steps: int | None = None) -> "str | envs.NativeEnv | Copy":
        """What `fit` and `evaluate` make copies of.

        Args:
            max_episode_steps: a time limit, if it has none of its own.
        """
        limit = self.max_episode_steps or max_episode_steps
        if not self.arguments and limit == self.max_episode_steps:
            return self.id
        if self.id.startswith("keras_pg/"):
            return self._native(limit)
        limited = {} if limit is None else {"max_episode_steps": limit}
        return Copy(self.id, lambda: self._gymnasium(**limited))

    def drawn(self) -> "str | envs.NativeEnv | Copy":
        """What `record` makes its environment of."""
        if not self.arguments:
            return self.id
        if self.id.startswith("keras_pg/"):
            return self._native(self.max_episode_steps)
        return Copy(self.id, lambda: self._gymnasium(render_mode="rgb_array"))

    def _native(self, max_episode_steps):
        with _nearest_named(self.id):
            env = envs.make(self.id)
        others = {k: v for k, v in self.arguments.items() if k != "max_episode_steps"}
        if others:
            env = type(env)(**others)
        if max_episode_steps is not None:
            env.max_episode_steps = max_episode_steps
        return env

    def _gymnasium(self, **more):
        with _nearest_named(self.id):
            return gymnasium.make(self.id, disable_env_checker=True, **{**self.arguments, **more})


class Copy:
    """A factory that says which environment it makes, as environments do."""

    def __init__(self, id: str, make: Callable[[], gymnasium.Env]):
        self.make, self.spec = make, gymnasium.spec(id.rpartition(":")[2])

    def __call__(self) -> gymnasium.Env:
        return self.make()


@contextlib.contextmanager
def _nearest_named(id):
    """Has an error about an unknown id name the nearest that there are."""
    try:
        yield
    except gymnasium.error.UnregisteredEnv as error:
        near = nearest(id)
        listed = f" The nearest are {', '.join(near)}." if near else ""
        raise ValueError(
            f"No environment {id!r} is registered.{listed} Where a package registers an "
            "environment, write module:ID, such as ale_py:ALE/Pong-v5."
        ) from error


def nearest(id: str) -> list[str]:
    """Up to three registered ids whose names are most like this one, in their newest versions."""
    newest = {}
    for spec in gymnasium.registry.values():
        # By name alone: what all have in common, "-v1", would make all of them alike.
        name = "/".join(filter(None, (spec.namespace, spec.name))).lower()
        if name not in newest or (spec.version or 0) > (newest[name].version or 0):
            newest[name] = spec
    wanted = re.sub(r"-v\d+$", "", id.rpartition(":")[2]).lower()
    return [newest[name].id for name in difflib.get_close_matches(wanted, newest, n=3)]
