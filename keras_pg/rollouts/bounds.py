"""Checks of observations against the bounds of their space, of a whole rollout at once."""

import warnings

import gymnasium
import numpy as np

from keras_pg import spaces
from keras_pg.rollouts.checking import ContractError, ObservationRows

# Rounding of float32 is no fault, nor is that of a resized image.
_ROUNDING, _IMAGE_ROUNDING = 1e-5, 1e-2


class BoundsChecks:
    """Checks a rollout's observations against the bounds of their space.

    A member that does not exist, a mask that is none and an image beyond its bounds cannot be
    represented, and raise. What lies beyond the bounds of another Box is warned of once.

    Args:
        space: an observation space that agents take.
    """

    def __init__(self, space):
        rows = ObservationRows(space)
        bounded = [_Bounds(name, leaf) for name, leaf in rows.leaves.items()]
        self._bounds = [bounds for bounds in bounded if bounds.tells]
        self._masked = rows.masked

    def __call__(self, rollout, steps, before):
        """Looks at the first `steps` of a rollout; `before` are the steps that came before it.

        Raises:
            ContractError: it holds an observation that cannot be.
        """
        for bounds in list(self._bounds):
            found = []
            for observations in (rollout.next_observations, rollout.observations):
                array = observations[bounds.part] if self._masked else observations
                place = bounds.first_beyond(array[:steps])
                if place is not None:
                    found.append((place[0], place, array[place]))
            if not found:
                continue
            step, place, value = min(found, key=lambda entry: entry[0])
            message = bounds.message(place, value)
            error = ContractError(f"Environment {place[1]}", message)
            error.step = before + step
            if bounds.strict:
                error.fault += " Nothing was learnt from this rollout."
                raise error
            self._bounds.remove(bounds)
            warnings.warn(
                f"{error} It is taken as it is, and this is said once. Give the space the bounds "
                "that observations have, or clip them.",
                stacklevel=3,
            )


class _Bounds:
    """The bounds of one leaf."""

    def __init__(self, part, leaf):
        space = self.space = leaf.space
        self.part, self.name = part, leaf.name
        image = spaces.is_image(space) and part == "observation"
        self.strict = image or part == "action_mask"
        self.tells = True
        if isinstance(space, gymnasium.spaces.Discrete):
            self.strict = True
            self.low, self.high = int(space.start), int(space.start) + int(space.n) - 1
        elif isinstance(space, gymnasium.spaces.MultiBinary):
            self.low, self.high = 0, 1
        elif space.dtype.kind == "f":
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                slack = _IMAGE_ROUNDING * (high - low) if image else 0.0
                self.low = low - slack - _ROUNDING * np.maximum(1.0, abs(low))
                self.high = high + slack + _ROUNDING * np.maximum(1.0, abs(high))
            self.tells = bool(np.isfinite(low).any() or np.isfinite(high).any())
        else:
            self.low, self.high = space.low, space.high
            limits = (0, 1) if space.dtype == bool else _limits(space.dtype)
            self.tells = bool((space.low > limits[0]).any() or (space.high < limits[1]).any())
        if self.tells and np.ndim(self.low):
            # Bounds that are alike are compared with one number, which is faster still.
            low, high = np.unique(self.low), np.unique(self.high)
            if len(low) == len(high) == 1:
                self.low, self.high = low[0], high[0]

    def first_beyond(self, array):
        """(step, environment, ...) of the earliest number beyond the bounds, or None."""
        if not len(array):
            return None
        # Over the first axis alone, which is many times as fast as over two.
        axis = 0 if np.ndim(self.low) else None
        below = array.min(axis=axis) < self.low
        if not (below.any() or (array.max(axis=axis) > self.high).any()):
            return None
        beyond = np.argwhere((array < self.low) | (array > self.high))
        return tuple(map(int, beyond[0]))

    def message(self, place, value):
        at = f"[{', '.join(map(str, place[2:]))}]" if len(place) > 2 else ""
        if isinstance(self.space, gymnasium.spaces.Discrete):
            expected = f"{self.low} to {self.high}"
        elif isinstance(self.space, gymnasium.spaces.MultiBinary):
            expected = "0 or 1"
        else:
            expected = f"{self.space.low[place[2:]]} to {self.space.high[place[2:]]}"
        return f"{self.name}{at} is {value}, expected {expected}, as {self.space} says."


def _limits(dtype):
    limits = np.iinfo(dtype)
    return limits.min, limits.max
