"""The progress of `fit` and `evaluate` on the screen, or in a log."""

import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping

import keras

logger = logging.getLogger("keras_pg")

# The first that fit into a line are shown; those that are not named here come last.
_ORDER = (
    *("episode_return", "val_episode_return", "env_steps", "loss", "approx_kl", "kl", "entropy"),
    *("policy_loss", "value_loss", "explained_variance", "episode_length", "val_episode_length"),
)
_BAR = 10
_EVALUATION = "Evaluation"
_SECONDS_BETWEEN_UPDATES = 0.1


def as_text(value: float) -> str:
    """A metric as people read it: whole numbers whole, others with four significant digits.

    Example:
    >>> as_text(102400.0), as_text(21.9345), as_text(0.00123456), as_text(float("nan"))
    ('102400', '21.93', '0.001235', 'nan')
    """
    if math.isfinite(value) and value == int(value):
        return str(int(value))
    return f"{value:.4g}"


def line(prefix: str, metrics: Mapping[str, float], width: int | None = None) -> str:
    """One line of text: a prefix, and the metrics that fit into so many columns, the return first.

    Args:
        prefix: what the line begins with.
        metrics: scalars by name.
        width: columns that the line may take; None for any number.

    Example:
    >>> line("3/20", {"entropy": 0.5, "env_steps": 2048.0, "episode_return": 21.5}, width=50)
    '3/20 - episode_return: 21.5 - env_steps: 2048'
    """
    order = {name: place for place, name in enumerate(_ORDER)}
    names = sorted(metrics, key=lambda name: (order.get(name, len(order)), name))
    for name in names:
        longer = f"{prefix} - {name}: {as_text(float(metrics[name]))}"
        if width is not None and len(longer) > width:
            break
        prefix = longer
    return prefix


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras's progress bar for agents: one line an epoch, the return first.

    On a terminal the line grows while the epoch runs, and holds the metrics that fit into its
    width. Elsewhere, as in a file, each epoch is one line of all metrics, written at its end.
    `fit` and `evaluate` add it themselves, unless `verbose=0`.

    Example:
    >>> bar = ProgressBar()
    >>> bar.set_params({"verbose": 2, "epochs": 5, "steps": 10})
    >>> bar.on_epoch_begin(0)
    >>> bar.on_epoch_end(0, {"episode_return": 21.5})
    Epoch 1/5 - 10/10 - 0s - episode_return: 21.5
    """

    def on_epoch_begin(self, epoch, logs=None):
        self._start(f"Epoch {epoch + 1:{len(str(self.epochs))}}/{self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self._update(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._finish(logs)

    def on_test_begin(self, logs=None):
        if not self._called_in_fit:
            self._start(_EVALUATION)

    def on_test_batch_end(self, batch, logs=None):
        """Nothing: an evaluation is one batch."""

    def on_test_end(self, logs=None):
        if not self._called_in_fit:
            self._finish(logs)

    def _start(self, title):
        self._title, self._began, self._shown = title, time.monotonic(), 0
        self._last_update = self._began
        self.seen = 0

    def _update(self, batch, logs):
        self.seen = batch + 1
        now = time.monotonic()
        if self.verbose != 1 or not _is_redrawn():
            return
        if now - self._last_update >= _SECONDS_BETWEEN_UPDATES:
            self._last_update = now
            done = round(_BAR * self.seen / self.target) if self.target else 0
            self._draw(f"{self._title} {'━' * done}{'╌' * (_BAR - done)} {self._progress()}", logs)

    def _finish(self, logs):
        # Epochs may end before their last step.
        self.seen = self.seen or self.target or 1
        title = f"{self._title} - {self._progress()}"
        if self.verbose == 1 and _is_redrawn():
            self._draw(title, logs)
            _write("\n")
        elif self.verbose:
            _write(line(title, logs or {}) + "\n")

    def _progress(self):
        seconds = f"{time.monotonic() - self._began:.0f}s"
        if self._title == _EVALUATION:
            return seconds
        steps = str(self.target or self.seen)
        return f"{self.seen:{len(steps)}}/{steps} - {seconds}"

    def _draw(self, title, logs):
        # One column less than there are: in the last one some terminals begin the next line.
        text = line(title, logs or {}, shutil.get_terminal_size().columns - 1)
        _write("\r" + text.ljust(self._shown))
        self._shown = len(text)


def with_progress_bar(callbacks, verbose):
    """Callbacks as a list, with a `ProgressBar` unless that is not wanted or one is among them."""
    callbacks = as_list(callbacks)
    if verbose == 0 or any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks):
        return callbacks
    return [*callbacks, ProgressBar()]


def as_list(callbacks):
    """What Keras takes as `callbacks`, as a list."""
    if callbacks is None:
        return []
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]


def _is_redrawn():
    """Whether a line on the screen can be written over: on a terminal, and in a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def _write(text):
    if keras.config.is_interactive_logging_enabled():
        sys.stdout.write(text)
        sys.stdout.flush()
    elif text.strip():
        logger.info(text.strip())
