"""Arguments of agents: checked at the door, and the few that may change while training."""

import difflib
import functools
import inspect
import math

import keras
import numpy as np

# An int64 holds these, and the seeds that are derived from them by adding.
LARGEST_SEED = 2**62


class Hyperparameter:
    """A float attribute that may follow a schedule and may be set while training.

    It behaves as `keras.optimizers.Optimizer.learning_rate` does. A number is held in a variable,
    so setting it from a callback needs no new trace. A `LearningRateSchedule` is evaluated at
    `agent.gradient_steps`, the number of gradient steps taken.

    Args:
        low, low_open: the least number it may be, and whether it must be above that.
        optional: it may be None when the agent is made, and then stays None.
    """

    def __init__(self, low=0.0, *, low_open=False, optional=False):
        self.low, self.low_open, self.optional = low, low_open, optional

    def __set_name__(self, owner, name):
        self.name, self.slot = name, f"_{name}_value"

    def __get__(self, agent, owner=None):
        if agent is None:
            return self
        value = getattr(agent, self.slot)
        if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
            return value(agent.gradient_steps)
        return None if value is None else value.value

    def __set__(self, agent, value):
        current = getattr(agent, self.slot, None)
        if self.optional and not hasattr(agent, self.slot) and value is None:
            return setattr(agent, self.slot, None)
        if self.optional and hasattr(agent, self.slot) and current is None:
            raise ValueError(f"{self.name} was None when the agent was made, and stays None.")
        scheduled = isinstance(value, keras.optimizers.schedules.LearningRateSchedule)
        if not scheduled:
            value = check_range(self.name, value, self.low, low_open=self.low_open)
        if scheduled and current is None:
            setattr(agent, self.slot, value)
        elif scheduled:
            raise ValueError(f"{self.name} can be given a schedule only when the agent is made.")
        elif isinstance(current, keras.Variable):
            current.assign(value)
        elif current is None:
            name, initializer = self.slot.strip("_"), keras.initializers.Constant(value)
            variable = agent.add_weight(name=name, initializer=initializer, trainable=False)
            setattr(agent, self.slot, variable)
        else:
            raise ValueError(
                f"{self.name} follows a schedule, {current!r}; it cannot be set to {value!r}."
            )

    def config(self, agent):
        """The schedule, or the current number."""
        value = getattr(agent, self.slot)
        if not isinstance(value, keras.Variable):  # None is one of them
            return value
        return float(str(value.numpy()))  # 0.2 rather than the float64 nearest to float32's 0.2


def check_range(name, value, low, high=math.inf, *, low_open=False, high_open=False):
    """`value` as a float; a `ValueError` that names it unless it is finite and in [low, high]."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    if (
        not number
        or isinstance(value, bool)
        or not math.isfinite(value)
        or not low <= value <= high
        or (low_open and value == low)
        or (high_open and value == high)
    ):
        left = "(" if low_open else "["
        right = f"{high})" if math.isinf(high) or high_open else f"{high}]"
        raise ValueError(f"{name} must be a number in {left}{low}, {right}, received {value!r}.")
    return float(value)


def check_flag(name, value):
    """`value`; a `ValueError` that names it unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, received {value!r}.")
    return value


def check_count(name, value, least=1):
    """`value` as an `int`; a `ValueError` that names it unless it is an integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        integer = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name} must be {integer}, received {value!r}.")
    return int(value)


def check_seed(name, value):
    """`value` as an `int`; a `ValueError` that names it unless it is one from 0 to 2⁶².

    >>> check_seed("seed", 7)
    7
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not 0 <= value <= LARGEST_SEED
    ):
        raise ValueError(f"{name} must be an integer from 0 to 2**62, received {value!r}.")
    return int(value)


def check_arguments(cls, unknown):
    """Raises a `TypeError` that says what was meant, if there are unknown arguments.

    Args:
        cls: the class of agents whose constructor was called.
        unknown: the keyword arguments that no constructor of its bases takes, by name.
    """
    for name in unknown:
        for method in ("fit", "compile"):
            if name in inspect.signature(getattr(cls, method)).parameters:
                raise TypeError(f"{name!r} is an argument of {cls.__name__}.{method}.")
        if name in ("learning_rate", "lr"):
            raise TypeError(
                f"{cls.__name__} has no argument {name!r}: the learning rate is the optimizer's, "
                "agent.compile(keras.optimizers.Adam(3e-4, global_clipnorm=0.5))."
            )
        raise TypeError(f"{cls.__name__} has no argument {name!r}{nearest(name, arguments(cls))}")


def checks_arguments(method):
    """A method of agents whose errors about its arguments name the agent and the nearest name."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self, *arguments, **keyword_arguments):
        try:
            signature.bind(self, *arguments, **keyword_arguments)
        except TypeError as error:
            unknown = [name for name in keyword_arguments if name not in signature.parameters]
            end = nearest(unknown[0], signature.parameters) if unknown else "."
            raise TypeError(f"{type(self).__name__}.{method.__name__}: {error}{end}") from None
        return method(self, *arguments, **keyword_arguments)

    return call


def arguments(cls):
    """The names of the arguments that an agent's constructor and those of its bases take."""
    names = set()
    for base in cls.__mro__:
        if base is keras.Model:
            break
        if "__init__" in vars(base):
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    return sorted(names - {"more_tracked"} - set(getattr(cls, "without", ())))


def nearest(name, names):
    """The end of a sentence, ": did you mean 'gamma'?", or a full stop if no name is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f": did you mean {near[0]!r}?" if near else "."
