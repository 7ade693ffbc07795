"""Keras's callbacks that monitor a metric, in training in which an epoch may have none of it.

An epoch in which no episode ends has no mean return. Its logs say NaN. Keras's monitors would take
that for the best value, for ever, since nothing is greater than NaN.
"""

import math
import warnings

import keras

from keras_pg.progress import as_list, with_progress_bar

_MONITORS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)
# What `mode="auto"` means.
_MODES = {"episode_return": "max", "val_episode_return": "max", "explained_variance": "max"}
_OF_VALIDATION = ("val_episode_return", "val_episode_length")


class CallbackList(keras.callbacks.CallbackList):
    """Keras's list of callbacks, in which monitors do not see values that there are none of.

    Where the monitored metric is NaN, or is one of validation in an epoch without validation, such
    an epoch is never the best one and does not count against patience. All other callbacks get the
    logs as they are. Monitors with `mode="auto"` look for the largest return.

    Args:
        callbacks: as of `keras.Model.fit`.
        validates: whether `fit` validates.
        verbose, epochs, steps, model: as Keras passes them on.
    """

    def __init__(self, callbacks, *, validates, verbose, epochs, steps, model):
        callbacks = with_progress_bar(as_list(callbacks), verbose)
        self._sometimes = _OF_VALIDATION if validates else ()
        for callback in callbacks:
            if isinstance(callback, _MONITORS) and callback.mode == "auto":
                callback.mode = _MODES.get(callback.monitor, "auto")
        super().__init__(
            callbacks, add_history=True, verbose=verbose, epochs=epochs, steps=steps, model=model
        )
        self._savers = [c for c in self.callbacks if _compares(c) and _saves_in_an_epoch(c)]

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        blind = [c for c in self.callbacks if _compares(c) and self._lacks_value(c, logs)]
        for monitor in blind:
            self._end_epoch_without_value(monitor, epoch, logs)
        self._without(blind, super().on_epoch_end, epoch, logs)

    def on_train_batch_end(self, batch, logs=None):
        blind = [c for c in self._savers if self._lacks_value(c, logs or {})]
        self._without(blind, super().on_train_batch_end, batch, logs)

    def _without(self, left_out, call, *arguments):
        everyone = self.callbacks
        self.callbacks = [c for c in everyone if c not in left_out]
        try:
            call(*arguments)
        finally:
            self.callbacks = everyone

    def _lacks_value(self, monitor, logs):
        if monitor.monitor not in logs:
            return monitor.monitor in self._sometimes
        return math.isnan(float(logs[monitor.monitor]))

    def _end_epoch_without_value(self, monitor, epoch, logs):
        if isinstance(monitor, keras.callbacks.ModelCheckpoint):
            return  # which would save
        others = {name: value for name, value in logs.items() if name != monitor.monitor}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a metric that is not available
            monitor.on_epoch_end(epoch, others)
        logs.update(others)  # `ReduceLROnPlateau` has noted the learning rate


def _compares(callback):
    """Whether it looks for the best value of a metric."""
    return isinstance(callback, _MONITORS) and getattr(callback, "save_best_only", True)


def _saves_in_an_epoch(callback):
    return getattr(callback, "save_freq", "epoch") != "epoch"
