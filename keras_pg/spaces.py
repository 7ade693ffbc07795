"""Gymnasium spaces: what is supported, how they are written down, how they are compared."""

import gymnasium
import numpy as np


def check_observation_space(space):
    """Returns `space` if an encoder exists for it, otherwise raises a `ValueError` naming it."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return space
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return space
    raise ValueError(
        f"Unsupported observation space: {space}. Supported are Box spaces of rank 1 and "
        "Discrete spaces. Wrap the environment, for example with "
        "`gymnasium.wrappers.FlattenObservation`."
    )


def check_action_space(space):
    """Returns `space` if a distribution exists for it, else raises a `ValueError` naming it."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return space
    of_rank_1 = gymnasium.spaces.Box | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary
    if isinstance(space, of_rank_1) and len(space.shape) == 1:
        if not isinstance(space, gymnasium.spaces.Box) or np.issubdtype(space.dtype, np.floating):
            return space
    raise ValueError(
        f"Unsupported action space: {space}. Supported are Discrete spaces, MultiDiscrete and "
        "MultiBinary spaces of rank 1, and Box spaces of rank 1 with a floating dtype."
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
    if isinstance(space, gymnasium.spaces.Box):
        # Bounds are written as text: JSON has no infinity, and some readers no 64-bit integers.
        number = float if space.dtype.kind == "f" else int
        low, high = (
            [repr(number(bound)) for bound in np.ravel(side)] for side in (space.low, space.high)
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
        np.array([number(bound) for bound in config[side]], dtype).reshape(config["shape"])
        for side in ("low", "high")
    )
    return gymnasium.spaces.Box(low, high, dtype=dtype)
