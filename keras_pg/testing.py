"""Tests for users' own environments."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces as kinds

from keras_pg import distributions, envs, spaces
from keras_pg.hyperparameters import check_count
from keras_pg.rollouts.checking import ContractError
from keras_pg.rollouts.closing import closing
from keras_pg.rollouts.making import check_spaces_of, make_vector_env, source_of
from keras_pg.rollouts.separate import check_is_env, check_separate
from keras_pg.rollouts.vector_env import VectorEnvCollector


def check_env(
    env: "str | gymnasium.Env | envs.NativeEnv | Callable[[], gymnasium.Env]",
    *,
    steps: int = 200,
    seed: int = 0,
) -> str:
    """Checks an environment as `fit` would meet it, and says what agents can do with it.

    First comes `gymnasium.utils.env_checker.check_env`, whose warnings are passed on. Then spaces
    are looked at, and random legal actions are played, with the checks that each answer goes
    through in training: lengths of the answers of `reset` and `step`, shapes, dtypes and bounds of
    observations, rewards and flags, NaN and infinity, masks that leave an action.

    Args:
        env: an environment id, a `gymnasium.Env`, a factory of one, or a `keras_pg.envs.NativeEnv`.
            A factory is called twice, to see that it makes two environments.
        steps: how many to play.
        seed: of the environment and of the actions.

    Returns:
        A few lines: how agents see observations, what actions are, what was played.

    Raises:
        ValueError: agents do not take a space (the message has the line to write), a factory
            returns one environment twice, or an answer contradicts the spaces or Gymnasium's
            interface (the message has the environment, step, field, what came, what was expected).
        FloatingPointError: an observation or reward is NaN or infinite.
        AssertionError: from Gymnasium's checker.
        TypeError: `env` is none of these.

    Example:
    >>> print(check_env("MountainCar-v0"))
    observations: a vector of 2 numbers, which networks normalize
    actions: one of 3 choices
    agents: all
    played: 200 steps of random actions, in which 1 episode ended
    """
    check_count("steps", steps)
    made, ours = _made(env)
    with closing(made, ours):
        # Agents' own words are better where both find a fault.
        try:
            _gymnasiums_check(made)
        except Exception as error:
            _play(made, env, steps, seed, error)
            raise
        episodes = _play(made, env, steps, seed, None)
    observations, actions = made.observation_space, made.action_space
    masked = spaces.is_masked(observations)
    ended = f"{episodes or 'no'} episode{'s' * (episodes > 1)} ended"
    return "\n".join(
        [
            f"observations: {_of_observations(spaces.without_mask(observations))}"
            + ", beside a mask of legal actions" * masked,
            f"actions: {_of_actions(actions)}" + "; illegal ones have probability 0" * masked,
            "agents: all",
            f"played: {steps} steps of random actions, in which {ended}",
        ]
    )


def _made(env: Any) -> tuple[gymnasium.Env, bool]:
    """(one environment, whether it was made here)."""
    if isinstance(env, str) and env.startswith("keras_pg/"):
        env = envs.make(env)
    if isinstance(env, gymnasium.Env):
        return env, False
    if isinstance(env, envs.NativeEnv):
        return envs.NativeSingleEnv(env), True
    if isinstance(env, str):
        return gymnasium.make(env, disable_env_checker=True), True
    if isinstance(env, gymnasium.vector.VectorEnv) or not callable(env):
        raise TypeError(
            "check_env takes an id, a gymnasium.Env, a factory of one or a keras_pg.envs.NativeEnv,"
            f" received {env!r}."
        )
    made = [check_is_env(env()), check_is_env(env())]
    check_separate(made)
    made[1].close()
    return made[0], True


def _gymnasiums_check(env: gymnasium.Env) -> None:
    from gymnasium.utils.env_checker import check_env  # late: it imports what draws

    with warnings.catch_warnings():
        # A wrapped environment is what is trained on, so it is what is checked.
        warnings.filterwarnings("ignore", ".*different from the unwrapped version")
        check_env(env, skip_render_check=True, skip_close_check=True)


class _RandomActions:
    """An acting engine of legal actions, drawn evenly."""

    def __init__(self, env: gymnasium.Env, distribution: Any, seed: int):
        self.space = env.action_space
        self.space.seed(seed)
        self.actions = np.zeros((1, *distribution.action_shape), distribution.action_dtype.name)

    def load_weights(self) -> None:
        """Nothing: there are none."""

    def __call__(self, observations: Any, noise: Any) -> tuple[Any, Any]:
        if not isinstance(observations, dict):
            return self.actions, np.asarray([self.space.sample()])
        mask = observations["action_mask"][0].astype(np.int8)
        if isinstance(self.space, kinds.MultiDiscrete):
            parts = np.split(mask, np.cumsum(self.space.nvec)[:-1])
            return self.actions, np.asarray([self.space.sample(mask=tuple(parts))])
        return self.actions, np.asarray([self.space.sample(mask=mask)])


def _play(made, given, steps, seed, problem) -> int:
    """Plays random actions through all checks, and returns how many episodes ended.

    An error of ours has Gymnasium's, `problem`, as its cause.
    """
    try:
        check_spaces_of(made, source_of(made, given))
        # As an object, which is not closed.
        vector, _ = make_vector_env(made)
        distribution = distributions.for_action_space(made.action_space)
        engine = _RandomActions(made, distribution, seed)
        collector = VectorEnvCollector(vector, engine, distribution, num_steps=steps, gamma=1.0)
        collector.reset(seed)
        rollout = collector.collect()
    except (ContractError, FloatingPointError, ValueError) as error:
        if problem is None:
            raise
        raise error from problem
    return int((rollout.terminated | rollout.truncated).sum())


def _of_observations(space: gymnasium.Space) -> str:
    if isinstance(space, kinds.Discrete):
        return f"one of {space.n} states, as a one-hot vector"
    if spaces.is_image(space):
        first = spaces.has_channels_first(space)
        return f"an image of shape {space.shape}" + ", channels first" * first
    what = "a vector" if len(space.shape) == 1 else "a matrix"
    return f"{what} of {' x '.join(map(str, space.shape))} numbers, which networks normalize"


def _of_actions(space: gymnasium.Space) -> str:
    if isinstance(space, kinds.Discrete):
        return f"one of {space.n} choices"
    if isinstance(space, kinds.MultiDiscrete):
        return f"one of {', '.join(map(str, space.nvec))} choices each"
    if isinstance(space, kinds.MultiBinary):
        return f"{space.shape[0]} switches"
    bounded = bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
    return f"{space.shape[0]} numbers, of a Gaussian" + ", clipped or squashed" * bounded
