"""Agents as the command line makes and finds them."""

import argparse
import pathlib

import keras

import keras_pg
from keras_pg import encoders, spaces
from keras_pg.cli.environments import Environment
from keras_pg.hyperparameters import arguments, nearest

# What the command line has flags for.
_FLAGS = {"seed": "--seed", "actor": "--units", "critic": "--units"}
# What a value on a command line cannot be, or has no use there.
_OBJECTS = {"name", "reference"}


def make(options: argparse.Namespace, environment: Environment) -> keras_pg.Agent:
    """The compiled agent of the options of `train`, not yet built.

    Raises:
        ValueError: a hyperparameter that the algorithm does not have, or a wrong value; units for
            images.
        TypeError: a value of a wrong kind.
    """
    algorithm = getattr(keras_pg, options.algorithm)
    hyperparameters = check_names(algorithm, options.set)
    agent = algorithm(seed=options.seed, **hyperparameters)
    if options.units is not None:
        if spaces.is_image(spaces.without_mask(environment.observation_space)):
            raise ValueError(
                f"--units is for observations that are no images, and {environment.id} shows "
                f"{environment.observation_space}. In Python, give the agent "
                "keras_pg.cnn(units=...) as its actor."
            )
        encoder = {"actor": _encoder(options.units, agent.seed)}
        if agent.advantage.critic is not None:
            encoder["critic"] = _encoder(options.units, agent.seed + 1)
        agent = algorithm(seed=options.seed, **encoder, **hyperparameters)
    optimizer = agent.default_optimizer()
    if options.learning_rate is not None:
        optimizer.learning_rate = options.learning_rate[0]
    agent.compile(optimizer)
    return agent


def _encoder(units, seed):
    flat = keras.layers.Flatten()
    return keras.Sequential([flat, *encoders.mlp(tuple(units), seed=seed).layers])


def check_names(
    algorithm: type[keras_pg.Agent], assignments: list[tuple[str, object]]
) -> dict[str, object]:
    """{name: value} of hyperparameters of an algorithm.

    Raises:
        ValueError: it has none of a name; the error has the nearest.
    """
    known = sorted(set(arguments(algorithm)) - _OBJECTS - _FLAGS.keys())
    for name, _ in assignments:
        if name in _FLAGS:
            raise ValueError(f"--set {name}: there is a flag for it, {_FLAGS[name]}.")
        if name not in known:
            raise ValueError(
                f"--set {name}: {algorithm.__name__} has no such hyperparameter"
                f"{nearest(name, known)} It has {', '.join(known)}."
            )
    return dict(assignments)


class LinearDecay(keras.callbacks.Callback):
    """Lets the learning rate fall linearly from what it is to 0 over a number of environment steps.

    Args:
        timesteps: after so many steps of this call of `fit` it would be 0.
    """

    def __init__(self, timesteps: int):
        super().__init__()
        self.timesteps = timesteps

    def on_train_begin(self, logs=None):
        self.start = int(self.model.env_steps.numpy())
        rate = self.model.optimizer.learning_rate
        self.rate = float(keras.ops.convert_to_numpy(rate))

    def on_train_batch_end(self, batch, logs=None):
        done = (int(self.model.env_steps.numpy()) - self.start) / self.timesteps
        self.model.optimizer.learning_rate = self.rate * max(0.0, 1.0 - done)


def load(path: str) -> keras_pg.Agent:
    """The agent of a file, or of the directory of a training run.

    Raises:
        FileNotFoundError: there is none.
    """
    directory = pathlib.Path(path)
    # Keras writes a directory too, if it is asked to.
    if directory.is_dir() and not (directory / "config.json").exists():
        path = directory / "agent.keras"
        if not path.exists():
            raise FileNotFoundError(
                f"There is no agent.keras in {directory}: it is no directory of a training run, or "
                "training ended before anything was learnt."
            )
    return keras.models.load_model(path)
