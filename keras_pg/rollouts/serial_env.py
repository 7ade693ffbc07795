"""Environments that are stepped one after the other, in this process."""

import functools

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from keras_pg.rollouts.checking import EnvRow, ObservationRows
from keras_pg.rollouts.closing import close_after, close_all
from keras_pg.rollouts.separate import SharedEnvironmentError, check_is_env, check_separate


class SerialVectorEnv(SyncVectorEnv):
    """A `SyncVectorEnv` for a collector: it never resets by itself, and gives no infos.

    Merging the infos of N environments, which nothing here reads, and resetting one environment by
    a mask over all of them cost as much as several steps of CartPole. Arrays that are returned are
    overwritten by the next call: the collector copies them into the rollout anyway.

    Its autoreset mode is DISABLED, not SAME_STEP, which hands out the final observation by
    reference: an environment that reuses its array has overwritten it by then.

    Args:
        factories: functions that each return a `gymnasium.Env` of its own.

    Attributes:
        resting: bool [N], environments that a step leaves as they are; none at first.

    Raises:
        TypeError: a factory returns no `gymnasium.Env`.
        ValueError: two of them return the same environment, or wrappers of the same. It is left
            open, since somebody else holds it.
    """

    def __init__(self, factories):
        made = []

        def make(factory):
            made.append(check_is_env(factory()))
            # After each one: a second wrapper may have changed the first already.
            check_separate(made)
            return made[-1]

        try:
            super().__init__(
                [functools.partial(make, factory) for factory in factories],
                autoreset_mode=AutoresetMode.DISABLED,
                copy=False,
            )
        except SharedEnvironmentError:
            for env in made:
                if env.unwrapped is not made[-1].unwrapped:
                    env.close()
            raise
        except BaseException as error:
            for env in made:
                close_after(error, env)
            raise
        n = self.num_envs
        rows = ObservationRows(self.single_observation_space)
        self._batch = rows.empty(n)
        self.resting = np.zeros(n, bool)
        self._reward = np.zeros(n, np.float64)
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)
        arrays = self._batch, self._reward, self._terminated, self._truncated
        self._rows = [EnvRow(env, i, rows, *arrays) for i, env in enumerate(self.envs)]

    def reset(self, *, seed=None, options=None):
        """Starts new episodes: in all environments, or where `options["reset_mask"]` is True."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        seeds = seed
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        for i in np.flatnonzero(mask):
            self._rows[i].reset(seeds[i], options or None)
        return self._batch, {}

    def step(self, actions):
        """Steps the environments that do not rest; of the others, their latest step again."""
        for row, rests, action in zip(self._rows, self.resting.tolist(), actions):
            if not rests:
                row.step(action)
        return self._batch, self._reward, self._terminated, self._truncated, {}

    def close(self, **kwargs):
        """Closes every environment, also where closing one of them fails, and only once."""
        if not self.closed:
            self.closed = True
            close_all(self.envs)
