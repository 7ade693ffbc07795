"""Callbacks that Keras lacks."""

import pathlib

import keras
import tensorflow as tf

from keras_pg.files import replacing


class RaiseOnNonFinite(keras.callbacks.Callback):
    """Ends training with an error when no gradient has been finite for a while.

    A gradient that holds NaN or infinity is never applied; the weights stay as they were. One such
    step may be bad luck. Many in a row mean that training is over, and going on would hide it.

    Args:
        patience: gradient steps in a row that may be skipped. `Agent.fit` adds this callback.

    Raises:
        FloatingPointError: `patience` was reached.
    """

    def __init__(self, patience=10):
        super().__init__()
        self.patience = patience

    def on_train_batch_end(self, batch, logs=None):
        skipped = (logs or {}).get("nonfinite_updates", 0)
        if skipped >= self.patience:
            raise FloatingPointError(
                f"The last {int(skipped)} gradients were NaN or infinite and were not applied. The "
                "weights are as they were before. Likely causes: rewards of enormous size, a "
                "learning rate that is too high, or an encoder that overflows."
            )


class LearningCurve(keras.callbacks.Callback):
    """Draws episode return against environment steps, as a PNG renewed after each epoch.

    The picture is written under a temporary name and renamed: it can be watched while it changes.

    Args:
        path: file to write; its directory is made if need be.
        title: heading of the picture.

    Example:
    >>> import os, tempfile, keras_pg
    >>> path = os.path.join(tempfile.mkdtemp(), "learning_curve.png")
    >>> curve = LearningCurve(path)
    >>> curve.on_epoch_end(0, {"env_steps": 100.0, "episode_return": 20.0})
    >>> os.path.exists(path)
    True
    """

    def __init__(self, path, title=None):
        super().__init__()
        self.path = pathlib.Path(path)
        self.title = title
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs or {}))
        self._draw()

    def _draw(self):
        # Not pyplot: its global state belongs to the user. Imported late: it takes a moment.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        axes = figure.subplots()
        curves = {
            "episode_return": ("training, mean of the epoch's episodes", "-", "#f58518", 2.4),
            # Dashed: where both are one line, both are seen.
            "val_episode_return": ("validation, deterministic policy", "--", "#1f5fa8", 1.4),
        }
        for name, (label, style, color, width) in curves.items():
            points = [(e["env_steps"], e[name]) for e in self.epochs if name in e]
            if points:
                axes.plot(
                    *zip(*points),
                    style,
                    label=label,
                    color=color,
                    linewidth=width,
                    marker="o",
                    ms=3,
                )
        axes.set(xlabel="environment steps", ylabel="episode return", title=self.title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            figure.savefig(temporary, format="png")


class StopAfterTimesteps(keras.callbacks.Callback):
    """Stops training after the iteration that brings it to a number of environment steps.

    Args:
        timesteps: environment steps of this call of `fit`.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.REINFORCE(seed=0)
    >>> history = agent.fit("CartPole-v1", num_steps=500, epochs=100, verbose=0,
    ...                     callbacks=[StopAfterTimesteps(1000)])
    >>> int(agent.env_steps) >= 1000, len(history.epoch) < 100
    (True, True)
    """

    def __init__(self, timesteps):
        super().__init__()
        self.timesteps = timesteps

    def on_train_begin(self, logs=None):
        self.last = int(self.model.env_steps.numpy()) + self.timesteps

    def on_train_batch_end(self, batch, logs=None):
        if logs["env_steps"] >= self.last:
            self.model.stop_training = True


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, with environment steps along the horizontal axis.

    Runs of different numbers of environments, steps and epochs can then be compared with each
    other. Scalars and histograms are named as Keras names them, `epoch_episode_return` for example.

    Args:
        log_dir, histogram_freq, ...: as of `keras.callbacks.TensorBoard`; frequencies count epochs
            and iterations, as there.

    Example:
    >>> import os, tempfile, keras_pg
    >>> directory = tempfile.mkdtemp()
    >>> agent = keras_pg.A2C(seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=2, verbose=0,
    ...                     callbacks=[TensorBoard(directory)])
    >>> os.listdir(directory)
    ['train']
    """

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, {})
        if self.update_freq != "epoch":
            for name, value in (logs or {}).items():
                tf.summary.scalar(f"batch_{name}", value, step=_env_steps(self.model))

    def on_epoch_end(self, epoch, logs=None):
        frequencies = self.histogram_freq, self.embeddings_freq
        self.histogram_freq, self.embeddings_freq = (
            int(bool(every) and epoch % every == 0) for every in frequencies
        )
        super().on_epoch_end(_env_steps(self.model), logs)
        self.histogram_freq, self.embeddings_freq = frequencies


def _env_steps(agent):
    return int(agent.env_steps.numpy())
