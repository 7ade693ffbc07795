"""Checks of what environments answer, the same for all ways of stepping them.

Each answer is looked at once, where it is taken, before any cast: an array of the right dtype and
shape, as nearly all are, costs three comparisons.
"""

import numpy as np

from keras_pg import spaces

# Types that need no second look. Others may do as well, such as arrays of rank 0.
_NUMBERS = frozenset(
    {float, int, np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8}
    | {np.uint64, np.uint32, np.uint16, np.uint8}
)
_FLAGS, _BOOL = frozenset({bool, np.bool_}), np.dtype(bool)
_OLD_STEP = (
    "That is the step of the old Gym: return `observation, reward, terminated, truncated, info`."
)


class ContractError(ValueError):
    """What an environment answered contradicts Gymnasium's interface or its own spaces.

    Args:
        subject: which environment, such as "Environment 3".
        fault: what came, and what was expected.

    Attributes:
        step: steps of each environment since the start; None where nobody counts them.
        in_reset: whether it was the answer to `reset`.
    """

    def __init__(self, subject, fault):
        super().__init__(subject, fault)
        self.subject, self.fault = subject, fault
        self.step, self.in_reset = None, False

    def __str__(self):
        step = [] if self.step is None else [f"step {self.step}"]
        return f"{', '.join([self.subject, *step, *['reset'] * self.in_reset])}: {self.fault}"


def shown(value):
    """A value in an error message, with what tells its kind."""
    if isinstance(value, np.ndarray):
        kind = f"an array of shape {value.shape} and dtype {value.dtype}"
        if value.size <= 10:
            return f"{kind}, {value.tolist()}"
        numbers = value.dtype.kind in "biuf"
        return f"{kind}, from {value.min()} to {value.max()}" if numbers else kind
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if value is None else f"{text} ({type(value).__name__})"


# ------------------------------------------------------------------------------- one environment


class _Leaf:
    """One array of an observation: its name in messages, its space, what may become of it."""

    def __init__(self, name, space):
        self.name, self.space = name, space
        self.dtype, self.shape = space.dtype, space.shape
        self._integers = {int, space.dtype.type} if space.shape == () else ()

    def write(self, batch, i, value):
        """`batch[i] = value`, where that loses nothing."""
        if value.__class__ is np.ndarray:
            if value.dtype is self.dtype and value.shape == self.shape:
                batch[i] = value
                return
        elif type(value) in self._integers:
            try:
                batch[i] = value
            except OverflowError:
                raise ContractError(f"Environment {i}", self._outside(value)) from None
            return
        batch[i] = self.converted(value, f"Environment {i}")

    def converted(self, value, subject, leading=()):
        """`value` as an array of the leaf's dtype with these leading axes.

        Raises:
            ContractError: its shape is another, or its numbers would not survive.
        """
        shape = (*leading, *self.shape)
        try:
            array = np.asarray(value)
        except ValueError:  # lists of unequal lengths
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            raise ContractError(
                subject,
                f"{self.name} is {shown(value)}, expected numbers of shape {shape}, dtype "
                f"{self.dtype}, as {self.space} says.",
            )
        if array.shape != shape:
            raise ContractError(
                subject,
                f"{self.name} has the shape {array.shape}, expected {shape}, as {self.space} says.",
            )
        if array.dtype.kind == "f" and self.dtype.kind != "f":
            raise ContractError(
                subject,
                f"{self.name} has floats, {shown(value)}, expected dtype {self.dtype}, as "
                f"{self.space} says: a cast would cut them off. Return integers, or give the "
                "space a floating dtype.",
            )
        with np.errstate(over="ignore"):  # what is infinite then, `check_finite` tells of
            cast = array.astype(self.dtype, copy=False)
        if self.dtype.kind != "f" and not np.array_equal(cast, array):
            raise ContractError(subject, self._outside(array))
        return cast

    def _outside(self, value):
        return (
            f"{self.name} is {shown(value)}, which does not fit into dtype {self.dtype} of "
            f"{self.space}."
        )


class ObservationRows:
    """Takes observations of one space into the rows of a batch, checked.

    Args:
        space: an observation space that agents take.
    """

    def __init__(self, space):
        self.masked = spaces.is_masked(space)
        parts = space.items() if self.masked else [("observation", space)]
        self.leaves = {
            name: _Leaf(f'observation["{name}"]' if self.masked else name, part)
            for name, part in parts
        }
        self.write = self._write_parts if self.masked else self.leaves["observation"].write

    def empty(self, n, allocate=np.zeros):
        """Arrays for a batch of N: one, or a dictionary of them."""
        arrays = {
            name: allocate((n, *leaf.shape), leaf.dtype) for name, leaf in self.leaves.items()
        }
        return arrays if self.masked else arrays["observation"]

    def _write_parts(self, batch, i, observation):
        self._check_names(observation, f"Environment {i}")
        for name, leaf in self.leaves.items():
            leaf.write(batch[name], i, observation[name])

    def _check_names(self, observation, subject):
        if not isinstance(observation, dict) or not self.leaves.keys() <= observation.keys():
            came = f"keys {list(observation)}" if isinstance(observation, dict) else "no dictionary"
            raise ContractError(
                subject, f"observation has {came}, expected the keys {list(self.leaves)}."
            )

    def batch(self, observations, n, subject):
        """A whole batch that a vector environment gave, of the space's dtypes and shapes."""
        if self.masked:
            self._check_names(observations, subject)
            return {
                name: self._whole(leaf, observations[name], n, subject)
                for name, leaf in self.leaves.items()
            }
        return self._whole(self.leaves["observation"], observations, n, subject)

    @staticmethod
    def _whole(leaf, value, n, subject):
        if (
            value.__class__ is np.ndarray
            and value.dtype is leaf.dtype
            and value.shape == (n, *leaf.shape)
        ):
            return value
        return leaf.converted(value, subject, leading=(n,))


class EnvRow:
    """One environment that answers into row i of a batch, and whose answers are checked.

    Args:
        env: a `gymnasium.Env`.
        i: its index.
        rows: `ObservationRows` of its space.
        observations, rewards, terminated, truncated: arrays with a row for each environment.
    """

    def __init__(self, env, i, rows, observations, rewards, terminated, truncated):
        self.env, self.i = env, i
        self._write = rows.write
        self._observations, self._rewards = observations, rewards
        self._terminated, self._truncated = terminated, truncated

    def reset(self, seed=None, options=None):
        """Starts an episode.

        Raises:
            ContractError: the answer is no pair of an observation of the space and an info.
        """
        try:
            answer = self.env.reset(seed=seed, options=options)
        except BaseException as error:
            error.add_note(f"Environment {self.i} raised it in reset(seed={seed}).")
            raise
        try:
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise self._fault(
                    f"reset returned {_sizes(answer)}, expected two, `observation, info`. "
                    "(The old Gym's reset returned the observation alone.)"
                )
            self._write(self._observations, self.i, answer[0])
        except ContractError as error:
            error.in_reset = True
            raise

    def step(self, action):
        """Takes a step.

        Raises:
            ContractError: the answer is not what Gymnasium and the space say.
        """
        i = self.i
        try:
            answer = self.env.step(action)
        except BaseException as error:
            error.add_note(
                f"Environment {i} raised it when given the action {shown(action)} of "
                f"{self.env.action_space}."
            )
            raise
        try:
            observation, reward, terminated, truncated, _ = answer
        except (TypeError, ValueError):
            old = isinstance(answer, tuple) and len(answer) == 4
            raise self._fault(
                f"step returned {_sizes(answer)}, expected five, `observation, reward, "
                f"terminated, truncated, info`.{' ' + _OLD_STEP if old else ''}"
            ) from None
        self._write(self._observations, i, observation)
        if type(reward) not in _NUMBERS:
            reward = self._number(reward)
        if type(terminated) not in _FLAGS:
            terminated = self._flag("terminated", terminated)
        if type(truncated) not in _FLAGS:
            truncated = self._flag("truncated", truncated)
        self._rewards[i] = reward
        self._terminated[i] = terminated
        self._truncated[i] = truncated

    def _fault(self, fault):
        return ContractError(f"Environment {self.i}", fault)

    def _number(self, reward):
        array = _as_array(reward)
        if array.shape or array.dtype.kind not in "biuf":
            raise self._fault(f"reward is {shown(reward)}, expected a number, of shape ().")
        return array.item()

    def _flag(self, name, value):
        array = _as_array(value)
        if array.shape or array.dtype.kind not in "biuf" or array not in (0, 1):
            raise self._fault(f"{name} is {shown(value)}, expected True or False, of shape ().")
        return bool(array)


def _as_array(value):
    try:
        return np.asarray(value)
    except ValueError:
        return np.asarray(None)


def _sizes(answer):
    if isinstance(answer, tuple | list):
        return f"{len(answer)} value{'s' * (len(answer) != 1)}"
    return f"one value, {shown(answer)}"


# ---------------------------------------------------------------------------- vector environments


class BatchChecks:
    """Checks of what a vector environment answers that was made elsewhere.

    Args:
        env: a `gymnasium.vector.VectorEnv`.
    """

    def __init__(self, env):
        self._rows = ObservationRows(env.single_observation_space)
        self._n, self._shape, self._subject = env.num_envs, (env.num_envs,), str(env)

    def reset(self, answer):
        """Observations of the answer to `reset`, as arrays."""
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise ContractError(
                self._subject,
                f"reset returned {_sizes(answer)}, expected two, `observations, infos`.",
            )
        return self._rows.batch(answer[0], self._n, self._subject)

    def step(self, answer):
        """(observations, rewards, terminated, truncated, infos), arrays and flags bool."""
        if not isinstance(answer, tuple | list) or len(answer) != 5:
            old = isinstance(answer, tuple | list) and len(answer) == 4
            raise ContractError(
                self._subject,
                f"step returned {_sizes(answer)}, expected five, `observations, rewards, "
                f"terminated, truncated, infos`.{' ' + _OLD_STEP if old else ''}",
            )
        observations, rewards, terminated, truncated, infos = answer
        if not self._is_array(rewards) or rewards.dtype.kind not in "biuf":
            rewards = self._numbers("rewards", rewards)
        if not self._is_array(terminated) or terminated.dtype is not _BOOL:
            terminated = self._flags("terminated", terminated)
        if not self._is_array(truncated) or truncated.dtype is not _BOOL:
            truncated = self._flags("truncated", truncated)
        observations = self._rows.batch(observations, self._n, self._subject)
        return observations, rewards, terminated, truncated, infos

    def _is_array(self, values):
        return values.__class__ is np.ndarray and values.shape == self._shape

    def final(self, infos, i):
        """The final observation of environment i, which infos hold where it was reset at once."""
        try:
            found = infos["final_obs"][i] if isinstance(infos, dict) else infos[i]["final_obs"]
        except (KeyError, IndexError, TypeError):
            found = None
        if found is None:
            raise ContractError(
                self._subject,
                f"an episode of environment {i} ended in autoreset mode SAME_STEP, but infos have "
                f"no final_obs for it, only {shown(infos)}: Gymnasium's have the last observation "
                'of the episode in infos["final_obs"][i].',
            )
        return found

    def _numbers(self, name, values):
        array = _as_array(values)
        if array.shape != self._shape or array.dtype.kind not in "biuf":
            raise ContractError(
                self._subject, f"{name} are {shown(values)}, expected numbers of shape ({self._n},)"
            )
        return array

    def _flags(self, name, values):
        array = self._numbers(name, values)
        if not np.isin(array, (0, 1)).all():
            raise ContractError(
                self._subject, f"{name} are {shown(values)}, expected True or False, or 1 or 0."
            )
        return array.astype(bool)
