"""Gymnasium spaces: what is supported, how they are written down, how they are compared.

An observation is an array, or a dictionary {"observation": array, "action_mask": array} where the
environment says with it which actions are legal.
"""

import gymnasium
import numpy as np
import tensorflow as tf

from keras_pg import advice


def is_masked(space):
    """Whether observations of the space come with a mask of legal actions."""
    return isinstance(space, gymnasium.spaces.Dict) and set(space) == {"observation", "action_mask"}


def by_name(observations):
    """Observations, or specs of them, as a dictionary: {"observation": ...}, and the mask."""
    return observations if isinstance(observations, dict) else {"observation": observations}


def without_mask(space_or_observations):
    """The space, or the observations, beside the mask of legal actions; or what has no mask."""
    if isinstance(space_or_observations, dict | gymnasium.spaces.Dict):
        return space_or_observations["observation"]
    return space_or_observations


def observation_specs(space, leading=(None,)):
    """`tf.TensorSpec`s of observations with these leading axes, named as `by_name` names them."""
    if is_masked(space):
        return {
            name: tf.TensorSpec((*leading, *part.shape), part.dtype, name=name)
            for name, part in space.items()
        }
    return tf.TensorSpec((*leading, *space.shape), space.dtype, name="observation")


def is_image(space):
    """Whether a space is of images: a Box of rank 3, or one of rank 2 of bytes from 0 to 255."""
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) not in (2, 3):
        return False
    return len(space.shape) == 3 or (
        space.dtype == np.uint8 and np.all(space.low == 0) and np.all(space.high == 255)
    )


def has_channels_first(space):
    """Whether the first axis of a space of images is its channels: if it is the shortest."""
    return len(space.shape) == 3 and space.shape[0] < min(space.shape[1:])


# Numbers of an image are taken as float32, and so up to this one as they are.
_LARGEST_IN_IMAGE = 2**24


def check_observation_space(space, source=advice.UNKNOWN):
    """Returns `space` if an encoder exists for it.

    Args:
        space: the space.
        source: `keras_pg.advice.Source`, how the environment is made.

    Raises:
        ValueError: there is none; the message names the space and has the line to write.
    """
    observed = without_mask(space) if is_masked(space) else space
    supported = isinstance(observed, gymnasium.spaces.Discrete)
    if isinstance(observed, gymnasium.spaces.Box) and 0 not in observed.shape:
        supported = len(observed.shape) in (1, 2)
    if is_image(observed) and 0 not in observed.shape:
        low, high = float(observed.low.min()), float(observed.high.max())
        alike = np.all(observed.low == low) and np.all(observed.high == high)
        # Limits of a type are larger: no bounds, but the want of them.
        if alike and -_LARGEST_IN_IMAGE <= low < high <= _LARGEST_IN_IMAGE:
            return space
        raise ValueError(
            f"Observations of {space} are taken for images, whose numbers all lie between the same "
            f"two bounds, not beyond 2**24; these lie between {low:g} and {high:g}, or differ. "
            + advice.for_observations(space, source)
        )
    if supported:
        return space
    raise ValueError(
        f"Unsupported observation space: {space}. Supported are Box spaces of rank 1 to 3 and "
        "Discrete spaces, also as Dict(observation=..., action_mask=...). "
        + advice.for_observations(space, source)
    )


def action_components(space):
    """Sizes of the components of a Discrete or MultiDiscrete space; None for other spaces."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return [int(n) for n in np.ravel(space.nvec)]
    return None


def check_mask(observation_space, action_space):
    """Raises a `ValueError` if observations have a mask that is none for these actions."""
    if not is_masked(observation_space):
        return
    sizes = action_components(action_space)
    if sizes is None:
        raise ValueError(
            f"Actions of {action_space} cannot be masked: only Discrete and MultiDiscrete ones."
        )
    mask = observation_space["action_mask"]
    whole = isinstance(mask, gymnasium.spaces.MultiBinary | gymnasium.spaces.Box) and (
        np.issubdtype(mask.dtype, np.integer) or mask.dtype == bool
    )
    if isinstance(mask, gymnasium.spaces.Box):
        # Of other numbers a cast, as in the graph, could make a 0: of 2**32 as an int32.
        whole = whole and np.all(mask.low >= 0) and np.all(mask.high <= 1)
    if not whole or mask.shape != (sum(sizes),):
        raise ValueError(
            f"A mask of {action_space} has an entry, 0 or 1, for each of {sum(sizes)} choices, "
            "those of a MultiDiscrete space one component after the other: expected "
            f"MultiBinary({sum(sizes)}), received {mask}."
        )


def neither_0_nor_1(mask):
    """Which entries of an array can be none of a mask, bool, NaN among them."""
    return (mask != 0) & (mask != 1)


def have_legal_action(mask, action_space):
    """Whether each row of a mask [B, Σ n_i] leaves a choice in every component, bool [B]."""
    starts = np.cumsum([0, *action_components(action_space)[:-1]])
    return np.logical_or.reduceat(np.asarray(mask) != 0, starts, axis=-1).all(axis=-1)


def as_batch(observations, space, action_space, single=True):
    """Observations of a space as arrays of its dtype with a leading axis.

    Args:
        observations: of the shape of the space, or with one leading axis more.
        space: their space.
        action_space: that of the actions which they may mask.
        single: whether one observation, without a leading axis, is taken too.

    Returns:
        (observations, whether it was one without a leading axis).

    Raises:
        ValueError: the shape fits neither form; a mask has an entry that is neither 0 nor 1, or
            leaves no legal action.
    """
    if not is_masked(space):
        array, alone = _with_leading_axis(observations, space, single)
        return array.astype(space.dtype, copy=False), alone
    if not isinstance(observations, dict) or set(observations) != set(space):
        received = list(observations) if isinstance(observations, dict) else "no dictionary"
        raise ValueError(
            'Expected a dictionary of "observation" and "action_mask", which has a 1 for each '
            f"legal choice, received {received}."
        )
    observed, alone = as_batch(observations["observation"], space["observation"], None, single)
    mask, _ = _with_leading_axis(observations["action_mask"], space["action_mask"], alone)
    if len(mask) != len(observed):
        raise ValueError(f"{len(observed)} observations, but {len(mask)} action masks.")
    # Before the cast, which would make a 0 of 0.9 and, as an int8, of 256.
    wrong = neither_0_nor_1(mask)
    if wrong.any():
        row, choice = np.argwhere(wrong)[0]
        raise ValueError(
            f"The action mask of row {row} has the value {mask[row, choice]}, which is neither 0 "
            "nor 1."
        )
    mask = mask.astype(space["action_mask"].dtype, copy=False)
    legal = have_legal_action(mask, action_space)
    if not legal.all():
        raise ValueError(f"The action mask of row {np.argmin(legal)} leaves no legal action.")
    return {"observation": observed, "action_mask": mask}, alone


def _with_leading_axis(values, space, single):
    """(values as an array with a leading axis, of their own dtype; whether they had none)."""
    array = np.asarray(values)
    if single and array.shape == space.shape:
        return array[None], True
    if array.ndim != len(space.shape) + 1 or array.shape[1:] != space.shape:
        shape = ", ".join(["batch", *map(str, space.shape)])
        raise ValueError(
            f"Expected observations of shape ({shape}) for {space}, received {array.shape}."
        )
    return array, False


def check_action_space(space, source=advice.UNKNOWN):
    """Returns `space` if a distribution exists for it.

    Args:
        space: the space.
        source: `keras_pg.advice.Source`, how the environment is made.

    Raises:
        ValueError: there is none; the message names the space and has the line to write.
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        return space
    of_rank_1 = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary
    if isinstance(space, of_rank_1) and len(space.shape) == 1 and space.shape[0] > 0:
        if not isinstance(space, gymnasium.spaces.Box) or np.issubdtype(space.dtype, np.floating):
            return space
    raise ValueError(
        f"Unsupported action space: {space}. Supported are Discrete spaces, MultiDiscrete and "
        "MultiBinary spaces of rank 1, and Box spaces of rank 1 with a floating dtype. "
        + advice.for_actions(space, source)
    )


def check_same_spaces(built, given):
    """Raises a `ValueError` that shows both pairs of spaces when they differ.

    Args:
        built: (observation space, action space) the agent was built for.
        given: (observation space, action space) of the environment.
    """
    if tuple(built) != tuple(given):
        raise ValueError(
            "The environment's spaces differ from those the agent was built for.\n"
            f"  agent:       observations {built[0]}, actions {built[1]}\n"
            f"  environment: observations {given[0]}, actions {given[1]}\n"
            "Make a new agent for this environment, or wrap it so that its spaces match."
        )


def to_config(space):
    """Writes a space as a JSON-serializable dict; `from_config` reads it back.

    Example:
    >>> import gymnasium
    >>> space = gymnasium.spaces.Discrete(3, start=1)
    >>> to_config(space)
    {'type': 'Discrete', 'n': 3, 'start': 1, 'dtype': 'int64'}
    >>> from_config(to_config(space)) == space
    True
    """
    if isinstance(space, gymnasium.spaces.Discrete):
        numbers = {"n": int(space.n), "start": int(space.start)}
        return {"type": "Discrete", **numbers, "dtype": str(space.dtype)}
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        numbers = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", **numbers, "dtype": str(space.dtype)}
    if isinstance(space, gymnasium.spaces.MultiBinary):
        n = space.n if isinstance(space.n, int) else list(space.shape)
        return {"type": "MultiBinary", "n": n, "dtype": str(space.dtype)}
    if is_masked(space):
        return {"type": "Dict", "spaces": {name: to_config(part) for name, part in space.items()}}
    if isinstance(space, gymnasium.spaces.Box):
        # Bounds are written as text: JSON has no infinity, and some readers no 64-bit integers.
        # Those of images and matrices, if they are alike, are written once.
        number = float if space.dtype.kind == "f" else int
        once = len(space.shape) > 1 and all(
            np.all(side == side.flat[0]) for side in (space.low, space.high)
        )
        low, high = (
            [repr(number(bound)) for bound in np.ravel(side)[: 1 if once else None]]
            for side in (space.low, space.high)
        )
        return {
            "type": "Box",
            "low": low,
            "high": high,
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise ValueError(f"Unsupported space: {space}.")


def from_config(config):
    """Inverse of `to_config`. A space is returned as it is."""
    if isinstance(config, gymnasium.Space):
        return config
    if config["type"] == "Dict":
        parts = config["spaces"].items()
        return gymnasium.spaces.Dict({name: from_config(part) for name, part in parts})
    dtype = np.dtype(config["dtype"])
    if config["type"] == "Discrete":
        return gymnasium.spaces.Discrete(config["n"], start=config["start"], dtype=dtype.type)
    if config["type"] == "MultiDiscrete":
        return gymnasium.spaces.MultiDiscrete(
            config["nvec"], start=config["start"], dtype=dtype.type
        )
    if config["type"] == "MultiBinary":
        return gymnasium.spaces.MultiBinary(config["n"])
    number = float if dtype.kind == "f" else int
    low, high = (
        _of_shape(np.array([number(bound) for bound in config[side]], dtype), config["shape"])
        for side in ("low", "high")
    )
    return gymnasium.spaces.Box(low, high, dtype=dtype.type)


def _of_shape(bounds, shape):
    return np.full(shape, bounds[0]) if len(bounds) == 1 else bounds.reshape(shape)
