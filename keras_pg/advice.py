"""What to write where agents do not take a space: advice that depends on the space."""

from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces as kinds

OBJECT, FACTORY, VECTOR = "object", "factory", "vector"
_NUMBERS = "gym.spaces.Box(-np.inf, np.inf, (N,))"


class Source(NamedTuple):
    """How an environment is made, for the line that an error message prints."""

    expression: str  # Python that makes it, or that it is
    kind: str = FACTORY  # made anew in each call; or an `OBJECT`, or a `VECTOR` environment

    def line(self, wrapper: str, *arguments: str, inner=()) -> str:
        """The line to write, in backticks: the environment in a wrapper, with others beneath it.

        Args:
            wrapper: name of a wrapper of single environments.
            arguments: of the wrapper, as Python.
            inner: pairs of the name and the arguments of wrappers beneath it, innermost first.

        Example:
        >>> Source('gym.make("Blackjack-v1")').line("gym.wrappers.FlattenObservation")
        '`lambda: gym.wrappers.FlattenObservation(gym.make("Blackjack-v1"))`'
        """
        text = self.expression
        for name, values in (*inner, (wrapper, arguments)):
            if self.kind == VECTOR:
                text = _of_vector(name, text, values)
            else:
                text = f"{name}({', '.join((text, *values))})"
        return f"`lambda: {text}`" if self.kind == FACTORY else f"`{text}`"


def _of_vector(name, env, arguments):
    """A wrapper of single environments around a vector environment."""
    module, _, wrapper = name.rpartition(".")
    if module == "gym.wrappers":
        return f"gym.wrappers.vector.{wrapper}({', '.join((env, *arguments))})"
    kind = "Action" if wrapper == "FlattenAction" else "Observation"
    return f"gym.wrappers.vector.VectorizeTransform{kind}({', '.join((env, name, *arguments))})"


UNKNOWN = Source("make_env()")


def mask_path(space: gymnasium.Space) -> tuple | None:
    """Keys that lead to the "action_mask" in nested Dict and Tuple spaces; None without one."""
    if isinstance(space, kinds.Dict):
        if "action_mask" in space.spaces:
            return ("action_mask",)
        parts = space.spaces.items()
    elif isinstance(space, kinds.Tuple):
        parts = enumerate(space.spaces)
    else:
        return None
    for key, part in parts:
        path = mask_path(part)
        if path is not None:
            return (key, *path)
    return None


def flattens(space: gymnasium.Space) -> bool:
    """Whether Gymnasium makes one array of an observation of this space."""
    if isinstance(space, kinds.Dict):
        return all(flattens(part) for part in space.values())
    if isinstance(space, kinds.Tuple):
        return all(flattens(part) for part in space)
    if isinstance(space, kinds.OneOf):
        return False
    # A subclass of none of these, such as MiniGrid's MissionSpace, Gymnasium cannot flatten.
    known = kinds.Box | kinds.Discrete | kinds.MultiBinary | kinds.MultiDiscrete | kinds.Text
    return isinstance(space, known)


def for_observations(space: gymnasium.Space, source: Source) -> str:
    """How to wrap an environment whose observation space no agent takes.

    Args:
        space: the space.
        source: `Source`.

    Returns:
        Sentences, with the line to write.
    """
    flatten = "gym.wrappers.FlattenObservation"
    if isinstance(space, kinds.Box):
        return _for_box(space, source)
    if mask_path(space) is not None:
        return _for_masked(space, source)
    if isinstance(space, kinds.Text):
        return (
            f"It can be seen as numbers, one a character: {source.line(flatten)}. What the text "
            "means is for you to make numbers of: "
            + source.line("gym.wrappers.TransformObservation", "to_array", _NUMBERS)
            + ", where to_array makes N numbers of a text."
        )
    if flattens(space):
        return f"Make one array of its parts: {source.line(flatten)}."
    if isinstance(space, kinds.Dict | kinds.Tuple):
        kept, left = _parts(space)
        if kept:
            inner = [("gym.wrappers.FilterObservation", (repr(kept),))]
            return (
                f"Gymnasium cannot make numbers of {left}. Leave {_it(left)} out, and make one "
                f"array of the rest: {source.line(flatten, inner=inner)}."
            )
    what = {
        kinds.Sequence: "Its length varies, which no network here takes: cut and pad it",
        kinds.Graph: "Its size varies, which no network here takes: bring it to one size",
    }
    said = next((text for kind, text in what.items() if isinstance(space, kind)), "Make it numbers")
    return (
        f"{said}: {source.line('gym.wrappers.TransformObservation', 'to_array', _NUMBERS)}, where "
        "to_array makes N numbers of an observation."
    )


def _parts(space):
    """(keys of what Gymnasium can flatten, keys of what it cannot) of a Dict or Tuple space."""
    items = space.spaces.items() if isinstance(space, kinds.Dict) else enumerate(space.spaces)
    kept, left = [], []
    for key, part in items:
        (kept if flattens(part) else left).append(key)
    return kept, left


def _it(keys):
    return "it" if len(keys) == 1 else "them"


def _for_masked(space, source):
    path = mask_path(space)
    wrapper = "keras_pg.wrappers.FlattenBesideMask"
    kept, left = _parts(space)
    if path[0] in left or kept + left == list(path[:1]):
        return (
            "Its action_mask says which actions are legal, and must stay a mask: bring it into "
            "the form Dict(observation=..., action_mask=...) by a gymnasium.ObservationWrapper."
        )
    inner, said = [], ""
    if left:
        inner = [("gym.wrappers.FilterObservation", (repr(kept),))]
        said = f" Gymnasium cannot make numbers of {left}, which this leaves out."
    return (
        "Its action_mask says which actions are legal, and must stay a mask: an input of the "
        "network it would not be obeyed. Make one array of the rest, beside the mask: "
        f"{source.line(wrapper, inner=inner)}.{said}"
    )


def for_flattened_mask(space: gymnasium.Space, source: Source) -> str:
    """The error of an environment whose mask Gymnasium's FlattenObservation hides."""
    line = Source("env", VECTOR if source.kind == VECTOR else OBJECT)
    return (
        "gymnasium.wrappers.FlattenObservation makes the action_mask an input of the network, "
        f"where it is not obeyed: it wraps observations of {space}. Write in its place, around "
        f"the same environment: {line.line('keras_pg.wrappers.FlattenBesideMask')}."
    )


def _for_box(space, source):
    transform = "gym.wrappers.TransformObservation"
    if 0 in space.shape:
        zero = "gym.spaces.Box(0, 1, (1,))"
        return (
            "It holds no numbers, and a network needs one. If there is nothing to see: "
            f"{source.line(transform, 'lambda _: np.zeros(1, np.float32)', zero)}."
        )
    if space.shape == ():
        return f"Give it an axis: {source.line('gym.wrappers.ReshapeObservation', '(1,)')}."
    low, high = space.low.flat[0], space.high.flat[0]
    if len(space.shape) == 4 and np.all(space.low == low) and np.all(space.high == high):
        frames, *image = space.shape
        if frames <= 16:  # or else the frames are not the first axis
            shape = (*image[:-1], image[-1] * frames)
            box = f"gym.spaces.Box({low}, {high}, {shape}, np.{space.dtype})".replace(
                "inf", "np.inf"
            )
            joined = source.line(transform, "lambda x: np.concatenate(list(x), -1)", box)
            return f"If these are frames of an image, make them its channels: {joined}."
    flat = source.line("gym.wrappers.FlattenObservation")
    if len(space.shape) == 3:
        return f"If it is no image, make it a vector: {flat}."
    return f"Make it a vector: {flat}."


def for_actions(space: gymnasium.Space, source: Source) -> str:
    """How to wrap an environment whose action space no agent takes.

    Args:
        space: the space.
        source: `Source`.

    Returns:
        Sentences, with the line to write.
    """
    if isinstance(space, kinds.Box) and 0 in space.shape:
        return "It has no numbers: there is nothing to choose."
    found = {kind for _, kind in action_leaves(space)}
    if len(found) == 1 and found <= {"choices", "numbers"}:
        return f"Make it one vector: {source.line('keras_pg.wrappers.FlattenAction')}."
    template = source.line("gym.wrappers.TransformAction", "to_action", "SPACE")
    why = "It mixes choices and numbers, of which" if found == {"choices", "numbers"} else "Of it"
    return (
        f"{why} no agent here makes a distribution. Act in a space that one takes: {template}, "
        "where to_action makes the environment's action of one of SPACE."
    )


def action_leaves(space: gymnasium.Space) -> list[tuple[gymnasium.Space, str]]:
    """[(leaf, "choices", "numbers" or "other")] of an action space, from left to right."""
    if isinstance(space, kinds.Dict):
        return [leaf for part in space.values() for leaf in action_leaves(part)]
    if isinstance(space, kinds.Tuple):
        return [leaf for part in space for leaf in action_leaves(part)]
    if isinstance(space, kinds.Discrete | kinds.MultiDiscrete | kinds.MultiBinary):
        return [(space, "choices")]
    if isinstance(space, gymnasium.spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            return [(space, "numbers")]
        # Of more choices a network would have more outputs than it can learn.
        few = space.high.astype(np.float64) - space.low.astype(np.float64) < 2**16
        return [(space, "choices" if few.all() else "other")]
    return [(space, "other")]
