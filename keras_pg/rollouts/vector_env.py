"""Collects rollouts from Gymnasium vector environments, in any of the three autoreset modes."""

import functools
import warnings

import gymnasium
import numpy as np
import tensorflow as tf
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from keras_pg import envs, spaces
from keras_pg.envs.native_env import Copies
from keras_pg.hyperparameters import check_count
from keras_pg.rollouts.rollout import check_finite, draw_noise, rollout_specs

WHILE_STEPPING = "While stepping"
WHILE_RESETTING = "While resetting"

# Fewer float32 numbers than these between the smallest and the largest observation are too few.
_FEWEST_NUMBERS = 10


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
        ValueError: an argument has no meaning for this environment.
        TypeError: `env` is none of the above.
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
        factories, ours = [lambda: env], False
    elif isinstance(env, str):
        factories = [lambda: gymnasium.make(env, disable_env_checker=True)] * (num_envs or 8)
        ours = True
    elif callable(env):
        factories, ours = [env] * (num_envs or 8), True
    else:
        raise TypeError(
            "An environment is an id, a gymnasium.Env, a factory, a gymnasium.vector.VectorEnv or "
            f"a keras_pg.envs.NativeEnv, received {env!r}."
        )
    if vectorization == "async":
        return AsyncVectorEnv(factories, autoreset_mode=AutoresetMode.DISABLED), ours
    return SerialVectorEnv(factories), ours


class SerialVectorEnv(SyncVectorEnv):
    """A `SyncVectorEnv` for a collector: it never resets by itself, and gives no infos.

    Merging the infos of N environments, which nothing here reads, and resetting one environment by
    a mask over all of them cost as much as several steps of CartPole. Arrays that are returned are
    overwritten by the next call: the collector copies them into the rollout anyway.

    Its autoreset mode is DISABLED, not SAME_STEP, which hands out the final observation by
    reference: an environment that reuses its array has overwritten it by then.

    Args:
        factories: functions that each return a `gymnasium.Env`.

    Attributes:
        resting: bool [N], environments that a step leaves as they are; none at first.
    """

    def __init__(self, factories):
        made = []

        def make(factory):
            made.append(factory())
            return made[-1]

        try:
            super().__init__(
                [functools.partial(make, factory) for factory in factories],
                autoreset_mode=AutoresetMode.DISABLED,
                copy=False,
            )
        except BaseException:
            for env in made:
                env.close()
            raise
        n = self.num_envs
        self._latest = [None] * n
        self._batch = create_empty_array(self.single_observation_space, n)
        self.resting = np.zeros(n, bool)
        self._reward = np.zeros(n, np.float64)
        self._terminated, self._truncated = np.zeros(n, bool), np.zeros(n, bool)

    def _observations_of_all(self):
        return concatenate(self.single_observation_space, self._latest, self._batch)

    def reset(self, *, seed=None, options=None):
        """Starts new episodes: in all environments, or where `options["reset_mask"]` is True."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        seeds = seed
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        for i in np.flatnonzero(mask):
            self._latest[i], _ = self.envs[i].reset(seed=seeds[i], options=options or None)
        return self._observations_of_all(), {}

    def step(self, actions):
        """Steps the environments that do not rest; of the others, their latest step again."""
        for i, (env, action) in enumerate(zip(self.envs, actions)):
            if self.resting[i]:
                continue
            step = env.step(action)
            self._latest[i], self._reward[i], self._terminated[i], self._truncated[i], _ = step
        return self._observations_of_all(), self._reward, self._terminated, self._truncated, {}


def _autoreset_mode(env):
    mode = env.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(
            f"{env} does not say in metadata['autoreset_mode'] when it resets itself; "
            "assuming Gymnasium's default, NEXT_STEP.",
            stacklevel=2,
        )
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)


def _store(target, index, observations):
    """`target[index] = observations`, where both may be dictionaries."""
    if isinstance(target, dict):
        for name, array in target.items():
            array[index] = observations[name]
    else:
        target[index] = observations


def _at(observations, index):
    """`observations[index]`, where they may be a dictionary."""
    if isinstance(observations, dict):
        return {name: array[index] for name, array in observations.items()}
    return observations[index]


class VectorEnvCollector:
    """Steps a vector environment with a policy and returns `Rollout`s.

    Environments keep their state between rollouts: an episode may span several.

    Args:
        env: a `gymnasium.vector.VectorEnv`.
        engine: acting engine for `env.num_envs` observations, see `rollouts.acting`.
        action_distribution: the actor's, for its noise and the shape of its actions.
        num_steps: T, steps of each environment in a rollout.
        gamma: discount of `Rollout.discounted_returns`.
        whole_episodes: a rollout holds the first episode of each environment, and rows after its
            end are invalid; an episode is truncated after T steps. `reset` comes before each.
    """

    in_graph = False

    def __init__(self, env, engine, action_distribution, *, num_steps, gamma, whole_episodes=False):
        self.env = env
        self.engine = engine
        self.action_distribution = action_distribution
        self.num_steps = num_steps
        self.gamma = gamma
        self.whole_episodes = whole_episodes
        self._mode = _autoreset_mode(env)
        self._action_dtype = env.single_action_space.dtype
        # Gymnasium's `Discrete.contains`, which many environments assert in each step, is quick for
        # Python's integers and takes as long as CartPole's whole physics for NumPy's.
        self._takes_python_integers = isinstance(
            env, SyncVectorEnv | AsyncVectorEnv
        ) and isinstance(env.single_action_space, gymnasium.spaces.Discrete)
        self._steps = 0
        # Environments made here wait for `reset` when their episode is over.
        self._rests = whole_episodes and isinstance(env, SerialVectorEnv)
        # A dtype of 16 bits loses nothing as float32.
        space = spaces.without_mask(env.single_observation_space)
        self._resolution_unchecked = (
            isinstance(space, gymnasium.spaces.Box) and space.dtype.itemsize > 2
        )
        self._masked = spaces.is_masked(env.single_observation_space)
        self.signature = rollout_specs(env, action_distribution, num_steps)

    def reset(self, seed, group_size=1):
        """Starts new episodes; environment i is seeded with `seed + i // group_size`."""
        n = self.env.num_envs
        # One integer: some vector environments take no list, and to Gymnasium's it means the same.
        seeds = int(seed)
        if group_size > 1:
            if not isinstance(
                self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv | envs.NativeVectorEnv
            ):
                raise ValueError(
                    f"Groups of {group_size} need environments that are seeded one by one: an id, "
                    "a factory, a native environment, a SyncVectorEnv or an AsyncVectorEnv, not "
                    f"{self.env}."
                )
            seeds = [int(seed) + i // group_size for i in range(n)]
        try:
            self._observations, _ = self.env.reset(seed=seeds)
        except Exception as error:
            error.add_note(f"{WHILE_RESETTING} {self.env}, before the first step.")
            raise
        self._just_ended = np.zeros(n, bool)
        self._timesteps = np.zeros(n, np.int32)
        self._episode_returns = np.zeros(n, np.float64)
        self._discounted_returns = np.zeros(n, np.float64)

    def collect(self, rng=None):
        """The next T steps under the actor's current weights.

        Args:
            rng: a `numpy.random.Generator` for the actions' noise; None acts deterministically.

        Raises:
            FloatingPointError: an observation or reward is NaN or infinite. The message names the
                field, the environment's index and the step.
        """
        self.engine.load_weights()
        T, n = self.num_steps, self.env.num_envs
        noise = draw_noise(self.action_distribution, rng, T, n)
        rollout = tf.nest.map_structure(
            lambda spec: np.empty(spec.shape, spec.dtype.as_numpy_dtype), self.signature
        )
        rollout.valid[:] = True
        steps, finished = T, np.zeros(n, bool)
        for t in range(T):
            if self.whole_episodes:
                if finished.all():
                    steps = t
                    break
                if self._rests:
                    self.env.resting[:] = finished
            try:
                self._step(rollout, t, noise[t // self.action_distribution.held_steps])
            except Exception as error:
                # A NaN the environment choked on is the better explanation.
                check_finite(rollout, t, self._steps)
                error.add_note(f"{WHILE_STEPPING} {self.env}, step {self._steps + t} of each.")
                raise
            finished |= self._just_ended
        if self.whole_episodes:
            self._keep_first_episodes(rollout, steps)
        check_finite(rollout, T, self._steps)
        self._check_resolution(spaces.without_mask(rollout.observations))
        self._steps += steps
        return rollout

    def _keep_first_episodes(self, rollout, steps):
        """Makes of the rows after the first episode, and after `steps`, copies of the first row.

        They are not valid, but go through the networks: they must be finite and in the space.
        """
        ended = rollout.terminated | rollout.truncated
        ended[steps:] = False
        valid = np.cumsum(ended, axis=0) - ended == 0
        valid[steps:] = False
        for field in tf.nest.flatten(rollout):
            for i in range(self.env.num_envs):
                field[~valid[:, i], i] = field[0, i]
        rollout.valid[:] = valid
        rollout.truncated[-1] |= ~ended.any(axis=0)

    def _step(self, rollout, t, noise):
        if self._masked:
            self._check_legal(t)
        _store(rollout.observations, t, self._observations)
        actions, env_actions = self.engine(_at(rollout.observations, t), noise)
        observations, rewards, terminated, truncated, info = self.env.step(
            env_actions.tolist()
            if self._takes_python_integers
            else env_actions.astype(self._action_dtype, copy=False)
        )
        rollout.actions[t] = actions
        rollout.rewards[t] = rewards
        rollout.terminated[t] = terminated
        rollout.truncated[t] = truncated
        _store(rollout.next_observations, t, observations)
        rollout.timesteps[t] = self._timesteps
        self._episode_returns += rewards
        self._discounted_returns *= self.gamma
        self._discounted_returns += rewards
        rollout.episode_returns[t] = self._episode_returns
        rollout.discounted_returns[t] = self._discounted_returns
        self._timesteps += 1
        self._observations = observations

        if self._mode is AutoresetMode.NEXT_STEP:
            # This step only reset the environments whose episode ended in the one before.
            rollout.valid[t] = ~self._just_ended
            self._restart(self._just_ended)
        ended = terminated | truncated
        self._just_ended = ended
        if self._rests or not ended.any():
            return
        if self._mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(ended):
                _store(rollout.next_observations, (t, i), info["final_obs"][i])
        elif self._mode is AutoresetMode.DISABLED:
            # A fresh dict: Gymnasium takes the mask out of the one it is given.
            self._observations, _ = self.env.reset(options={"reset_mask": ended.copy()})
        if self._mode is not AutoresetMode.NEXT_STEP:
            self._restart(ended)

    def _check_legal(self, t):
        """Raises if an environment leaves the policy no action; what its episode ends in, may."""
        legal = spaces.have_legal_action(
            self._observations["action_mask"], self.env.single_action_space
        )
        if self._mode is AutoresetMode.NEXT_STEP or self._rests:
            legal |= self._just_ended
        if not legal.all():
            i = np.argmin(legal)
            raise ValueError(
                f"Environment {i} has no legal action at step {self._steps + t} since the start: "
                f"its action_mask is {self._observations['action_mask'][i].tolist()}."
            )

    def _restart(self, mask):
        """Episode counters of the environments in `mask` start again."""
        if mask.any():
            self._timesteps[mask] = 0
            self._episode_returns[mask] = 0.0
            self._discounted_returns[mask] = 0.0

    def _check_resolution(self, observations):
        """Warns, once, of observations whose changes float32, as networks compute, cannot tell."""
        if not self._resolution_unchecked:
            return
        shape = observations.shape[2:]
        observations = observations.reshape(-1, np.prod(shape))
        low, high = observations.min(axis=0), observations.max(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond float32 are clipped
            spread = high.astype(np.float64) - low
            resolution = np.spacing(np.maximum(abs(low), abs(high)).astype(np.float32))
            coarse = np.flatnonzero((spread > 0) & (spread < _FEWEST_NUMBERS * resolution))
        if len(coarse):
            self._resolution_unchecked = False
            i = coarse[0]
            at = ", ".join(map(str, np.unravel_index(i, shape)))
            warnings.warn(
                f"Observation dimension {at} went from {low[i]} to {high[i]} in a rollout. "
                f"Networks compute in float32, whose numbers are {resolution[i]} apart there: take "
                "a constant off it in the environment.",
                stacklevel=2,
            )
