"""Wrappers that give a Gymnasium environment the form in which agents take it."""

import gymnasium
import numpy as np

from keras_pg import advice, spaces


class ActionMask(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """Puts a mask of the legal actions beside the observation.

    Observations become {"observation": what it was, "action_mask": int8 [Σ n_i], 1 where legal}.
    An agent gives the other actions probability 0, in training and wherever its policy runs.

    Args:
        env: an environment with Discrete actions, or MultiDiscrete ones of rank 1, whose mask has
            the choices of one component after the other.
        legal_actions: a function from the unwrapped environment to the mask, called after each
            reset and step; None takes `info["action_mask"]`, as Gymnasium's Taxi gives it. Where
            an episode terminates it may be missing: nothing is legal then.

    Raises:
        ValueError: the actions are of another kind, or there is no mask of the right length, of 0
            and 1 or of booleans.

    Example:
    >>> import gymnasium
    >>> env = ActionMask(gymnasium.make("Taxi-v4"))
    >>> observation, _ = env.reset(seed=0)
    >>> observation["action_mask"].tolist()  # neither east nor west, and nobody to pick up
    [1, 1, 0, 0, 0, 0]
    """

    def __init__(self, env, legal_actions=None):
        gymnasium.utils.RecordConstructorArgs.__init__(self, legal_actions=legal_actions)
        gymnasium.Wrapper.__init__(self, env)
        self.legal_actions = legal_actions
        sizes = spaces.action_components(env.action_space) or [0]
        self.observation_space = gymnasium.spaces.Dict(
            observation=env.observation_space,
            action_mask=gymnasium.spaces.MultiBinary(max(sum(sizes), 1)),
        )
        spaces.check_observation_space(self.observation_space)
        spaces.check_mask(self.observation_space, env.action_space)
        spaces.check_action_space(env.action_space)

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        return self._masked(observation, info), info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        masked = self._masked(observation, info, terminated)
        return masked, reward, terminated, truncated, info

    def _masked(self, observation, info, terminated=False):
        shape = self.observation_space["action_mask"].shape
        if self.legal_actions is not None:
            mask = self.legal_actions(self.env.unwrapped)
        elif "action_mask" in info:
            mask = info["action_mask"]
        elif terminated:
            mask = np.zeros(shape, np.int8)  # Nobody acts in it or asks for its value.
        else:
            raise ValueError(
                f"{self.env} gives no info['action_mask'], only {list(info)}: pass legal_actions, "
                "a function from the environment to the mask."
            )
        mask = np.asarray(mask)
        if mask.shape != shape:
            raise ValueError(
                f"A mask of {self.env.action_space} has the shape {shape}, received {mask.shape}."
            )
        if spaces.neither_0_nor_1(mask).any():
            raise ValueError(f"A mask has 0 or 1 for each choice, received {mask.tolist()}.")
        return {"observation": observation, "action_mask": mask.astype(np.int8)}


class FlattenBesideMask(gymnasium.wrappers.TransformObservation):
    """Makes one array of all parts of an observation but the mask, which stays a mask.

    Observations become {"observation": array, "action_mask": int8 [Σ n_i]}. Gymnasium's
    FlattenObservation would make the mask an input of the network. One part beside the mask that
    agents take as it is, such as an image, stays so.

    Args:
        env: an environment whose observations are dictionaries, or nested ones, with an
            "action_mask" among their parts. A mask of several axes or parts becomes one vector.

    Raises:
        ValueError: there is no mask, it does not fit the actions, or Gymnasium cannot flatten the
            rest.

    Example:
    >>> import gymnasium
    >>> from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
    >>> class Game(gymnasium.Env):
    ...     observation_space = Dict(board=Box(-1, 1, (9,)), score=Box(-1, 1, (2,)),
    ...                              action_mask=MultiBinary(9))
    ...     action_space = Discrete(9)
    >>> FlattenBesideMask(Game()).observation_space
    Dict('observation': Box(-1.0, 1.0, (11,), float32), 'action_mask': MultiBinary(9))

    For a vector environment: `gymnasium.wrappers.vector.VectorizeTransformObservation(envs,
    FlattenBesideMask)`.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        space = env.observation_space
        self._path = advice.mask_path(space)
        if self._path is None:
            raise ValueError(f"Observations of {space} have no action_mask.")
        self._rest, self._mask = _taken_out(space, self._path)
        self._named = isinstance(self._rest, gymnasium.spaces.Dict)
        parts = list(self._rest.spaces.values()) if self._named else list(self._rest)
        self._alone = len(parts) == 1 and _is_taken(parts[0])
        if not self._alone and not (len(parts) != 0 and advice.flattens(self._rest)):
            raise ValueError(f"Gymnasium cannot make one array of {self._rest}.")
        rest = parts[0] if self._alone else gymnasium.spaces.flatten_space(self._rest)
        choices = gymnasium.spaces.flatdim(self._mask)
        masked = gymnasium.spaces.Dict(
            observation=rest, action_mask=gymnasium.spaces.MultiBinary(choices)
        )
        spaces.check_observation_space(masked)
        gymnasium.wrappers.TransformObservation.__init__(self, env, self._flattened, masked)

    def _flattened(self, observation):
        rest, mask = _taken_out(observation, self._path)
        mask = np.ravel(gymnasium.spaces.flatten(self._mask, mask))
        if spaces.neither_0_nor_1(mask).any():
            raise ValueError(f"A mask has 0 or 1 for each choice, received {mask.tolist()}.")
        if self._alone:
            (rest,) = rest.values() if self._named else rest
        else:
            rest = gymnasium.spaces.flatten(self._rest, rest)
        return {"observation": rest, "action_mask": mask.astype(np.int8)}


def _taken_out(nest, path):
    """(a nest of spaces or of observations without what is at `path`, what is there).

    Dictionaries and tuples that are empty then go too.
    """
    key, *further = path
    named = isinstance(nest, gymnasium.spaces.Dict | dict)
    parts = dict(nest.items()) if named else list(nest)
    found = parts.pop(key)
    if further:
        rest, found = _taken_out(found, further)
        if len(rest) and named:
            parts[key] = rest
        elif len(rest):
            parts.insert(key, rest)
    if isinstance(nest, gymnasium.Space):
        return type(nest)(parts), found
    return parts, found


def _is_taken(space):
    try:
        return spaces.check_observation_space(space) is not None
    except ValueError:
        return False


class FlattenAction(gymnasium.wrappers.TransformAction):
    """Makes one vector of an action: MultiDiscrete of choices, or a Box of numbers.

    Discrete, MultiDiscrete, MultiBinary and integer Box spaces are choices, Box spaces of floats
    are numbers; Dict and Tuple spaces, nested, are joined in their order.

    Args:
        env: an environment whose actions are all choices or all numbers.

    Raises:
        ValueError: they are neither.

    Example:
    >>> import gymnasium
    >>> from gymnasium.spaces import Discrete, Tuple
    >>> class Duel(gymnasium.Env):
    ...     observation_space = Discrete(2)
    ...     action_space = Tuple([Discrete(3), Discrete(3, start=1)])
    >>> env = FlattenAction(Duel())
    >>> env.action_space, env.action([2, 1])
    (MultiDiscrete([3 3], start=[0 1]), (np.int64(2), np.int64(1)))

    For a vector environment: `gymnasium.wrappers.vector.VectorizeTransformAction(envs,
    FlattenAction)`.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self)
        space = env.action_space
        leaves = advice.action_leaves(space)
        found = {kind for _, kind in leaves}
        if found == {"choices"}:
            bounds = [_choices(leaf) for leaf, _ in leaves]
            start, n = (np.concatenate(side) for side in zip(*bounds))
            flat = gymnasium.spaces.MultiDiscrete(n, start=start)
        elif found == {"numbers"}:
            dtype = np.result_type(*[leaf.dtype for leaf, _ in leaves])
            low, high = (
                np.concatenate([np.ravel(side).astype(dtype) for side in sides])
                for sides in zip(*[(leaf.low, leaf.high) for leaf, _ in leaves])
            )
            flat = gymnasium.spaces.Box(low, high, dtype=dtype.type)
        else:
            raise ValueError(f"Actions of {space} are neither all choices nor all numbers.")
        self._original = space
        gymnasium.wrappers.TransformAction.__init__(self, env, self._unflattened, flat)

    def _unflattened(self, action):
        action, left = _filled(self._original, np.asarray(action))
        assert not len(left), left
        return action


def _choices(space):
    """(the first choice, the number of choices) of each component of a space, int64 [K] each."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return np.array([space.start], np.int64), np.array([space.n], np.int64)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        n = int(np.prod(space.shape))
        return np.zeros(n, np.int64), np.full(n, 2, np.int64)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return np.ravel(space.start).astype(np.int64), np.ravel(space.nvec).astype(np.int64)
    low, high = (np.ravel(side).astype(np.int64) for side in (space.low, space.high))
    return low, high - low + 1


def _filled(space, numbers):
    """(a member of the space from the first of these numbers, the other numbers)."""
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        of_dict = isinstance(space, gymnasium.spaces.Dict)
        parts = []
        for part in space.values() if of_dict else space:
            filled, numbers = _filled(part, numbers)
            parts.append(filled)
        return (dict(zip(space, parts)) if of_dict else tuple(parts)), numbers
    n = int(np.prod(space.shape))
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.dtype.type(numbers[0]), numbers[1:]
    return numbers[:n].reshape(space.shape).astype(space.dtype), numbers[n:]
