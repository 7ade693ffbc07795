"""Collects rollouts from Gymnasium vector environments, in any of the three autoreset modes."""

import warnings

import gymnasium
import numpy as np
import tensorflow as tf
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from keras_pg import envs, spaces
from keras_pg.rollouts.bounds import BoundsChecks
from keras_pg.rollouts.checking import BatchChecks, ContractError
from keras_pg.rollouts.processes import ProcessVectorEnv
from keras_pg.rollouts.rollout import check_finite, draw_noise, rollout_specs
from keras_pg.rollouts.serial_env import SerialVectorEnv

WHILE_STEPPING = "While stepping"
WHILE_RESETTING = "While resetting"

# Fewer float32 numbers than these between the smallest and the largest observation are too few.
_FEWEST_NUMBERS = 10


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
            env, SyncVectorEnv | AsyncVectorEnv | ProcessVectorEnv
        ) and isinstance(env.single_action_space, gymnasium.spaces.Discrete)
        self._steps = 0
        # Environments made here check each answer themselves, and wait for `reset` when their
        # episode is over.
        made_here = isinstance(env, SerialVectorEnv | ProcessVectorEnv)
        self._rests = whole_episodes and made_here
        self._checks = None if made_here else BatchChecks(env)
        self._bounds = BoundsChecks(env.single_observation_space)
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
                self.env.unwrapped,
                SyncVectorEnv | AsyncVectorEnv | ProcessVectorEnv | envs.NativeVectorEnv,
            ):
                raise ValueError(
                    f"Groups of {group_size} need environments that are seeded one by one: an id, "
                    "a factory, a native environment, a SyncVectorEnv or an AsyncVectorEnv, not "
                    f"{self.env}."
                )
            seeds = [int(seed) + i // group_size for i in range(n)]
        try:
            self._observations = self._reset(seed=seeds)
        except ContractError:
            raise
        except BaseException as error:
            error.add_note(f"{WHILE_RESETTING} {self.env}, before the first step.")
            raise
        self._just_ended, self._some_just_ended = np.zeros(n, bool), False
        self._timesteps = np.zeros(n, np.int32)
        self._episode_returns = np.zeros(n, np.float64)
        self._discounted_returns = np.zeros(n, np.float64)

    def _reset(self, **arguments):
        answer = self.env.reset(**arguments)
        return answer[0] if self._checks is None else self._checks.reset(answer)

    def collect(self, rng=None):
        """The next T steps under the actor's current weights.

        Args:
            rng: a `numpy.random.Generator` for the actions' noise; None acts deterministically.

        Raises:
            FloatingPointError: an observation or reward is NaN or infinite. The message names the
                field, the environment's index and the step.
            ContractError: an answer contradicts Gymnasium's interface or the observation space.
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
            except ContractError as error:
                error.step = self._steps + t
                raise
            except BaseException as error:
                if isinstance(error, Exception):
                    # A NaN the environment choked on is the better explanation.
                    check_finite(rollout, t, self._steps)
                error.add_note(f"{WHILE_STEPPING} {self.env}, step {self._steps + t} of each.")
                raise
            if self.whole_episodes:
                finished |= self._just_ended
        if self.whole_episodes:
            self._keep_first_episodes(rollout, steps)
        check_finite(rollout, T, self._steps)
        self._bounds(rollout, steps, self._steps)
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
        answer = self.env.step(
            env_actions.tolist()
            if self._takes_python_integers
            else env_actions.astype(self._action_dtype, copy=False)
        )
        if self._checks is not None:
            answer = self._checks.step(answer)
        observations, rewards, terminated, truncated, infos = answer
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

        if self._mode is AutoresetMode.NEXT_STEP and self._some_just_ended:
            # This step only reset the environments whose episode ended in the one before.
            rollout.valid[t] = ~self._just_ended
            self._restart(self._just_ended)
        ended = terminated | truncated
        self._just_ended, self._some_just_ended = ended, ended.any()
        if self._rests or not self._some_just_ended:
            return
        if self._mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(ended):
                _store(rollout.next_observations, (t, i), self._checks.final(infos, i))
        elif self._mode is AutoresetMode.DISABLED:
            # A fresh dict: Gymnasium takes the mask out of the one it is given.
            self._observations = self._reset(options={"reset_mask": ended.copy()})
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
