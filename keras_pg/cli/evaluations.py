"""Evaluations that cost a tenth of training, unless more was asked for."""

import math

import keras
import numpy as np

from keras_pg.hyperparameters import check_count

# Of the steps of training: of all evaluations together, and of the validations.
SHARE, VALIDATION_SHARE = 1 / 10, 1 / 20
FEWEST_EPISODES, MOST_EPISODES = 8, 100
# How `evaluate` plays: so many copies, until the longest of their episodes has ended, which is
# longer than their mean, in rollouts of so many steps.
_COPIES, _LONGEST, _ROLLOUT = 8, 1.25, 64


def time_limit(total_timesteps: int) -> int:
    """After how many steps an evaluation ends an episode that would never end by itself.

    >>> time_limit(100_000)
    1000
    """
    return max(100, total_timesteps // 100)


class Validation(keras.callbacks.Callback):
    """Evaluates at the end of epochs, and adds `val_episode_return` and `val_episode_length`.

    They are in the logs of callbacks that come after this one, and in those of Keras.

    Args:
        env: what `evaluate` takes.
        episodes: of each evaluation.
        frequency: validate after each so many epochs, and never if that is 0. None: after each
            epoch for which all validations together, this one included, play at most a twentieth
            of the steps that training has by then.
        max_episode_steps: time limit of an episode.

    Attributes:
        steps: about how many steps all validations together have played.
        episode_length: mean steps of an episode, as last seen; NaN while no episode has ended.
    """

    def __init__(
        self, env: object, episodes: int, frequency: int | None, *, max_episode_steps: int
    ):
        super().__init__()
        self.env = env
        self.episodes = check_count("episodes", episodes)
        self.frequency = frequency
        self.max_episode_steps = max_episode_steps
        self.steps, self.episode_length = 0, math.nan

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        self._learn_length(logs)
        if not self._is_due(epoch):
            return
        seed = self.model.seed + 1_000_000  # as `fit` validates
        result = self.model.evaluate(self.env, self.episodes, seed=seed, verbose=0)
        logs.update({f"val_{name}": value for name, value in result.items()})
        self._learn_length(result)
        self.steps += self._cost()

    def _learn_length(self, logs):
        length = logs.get("episode_length", math.nan)
        if not np.isnan(length):
            self.episode_length = float(length)

    def _is_due(self, epoch):
        if self.frequency is not None:
            return self.frequency > 0 and (epoch + 1) % self.frequency == 0
        if math.isnan(self.episode_length):
            return False
        return self.steps + self._cost() <= VALIDATION_SHARE * int(self.model.env_steps.numpy())

    def _longest(self):
        if math.isnan(self.episode_length):
            return self.max_episode_steps
        return min(_LONGEST * self.episode_length, self.max_episode_steps)

    def _cost(self):
        copies = min(_COPIES, self.episodes)
        steps = self._longest() * math.ceil(self.episodes / copies)
        return copies * _ROLLOUT * math.ceil(steps / _ROLLOUT)

    def final_episodes(self, total_timesteps: int) -> int:
        """How many episodes the steps that are left of a tenth of training's are enough for.

        Args:
            total_timesteps: of training.

        Returns:
            From 8 to 100.
        """
        affordable = int((SHARE * total_timesteps - self.steps) / self._longest())
        return min(MOST_EPISODES, max(FEWEST_EPISODES, affordable))
