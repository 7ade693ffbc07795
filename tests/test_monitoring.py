"""Stock callbacks of Keras, where epochs have no mean return."""

import math
import warnings

import gymnasium
import keras
import numpy as np
import pytest

import keras_pg

# Mean returns of the epochs of 4 steps: none where no episode ends.
RETURNS = [math.nan, -8.0, math.nan, math.nan, -6.0, -7.0]


class Scripted(gymnasium.Env):
    """Episodes end at the steps, counted from 1, that make the epochs' returns `RETURNS`."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.steps, self.total = 0, 0.0

    def reset(self, *, seed=None, options=None):
        self.total = 0.0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        epoch, step = divmod(self.steps - 1, 4)
        ends = step == 3 and not math.isnan(RETURNS[epoch])
        reward = RETURNS[epoch] - self.total if ends else 0.0
        self.total += reward
        return np.zeros(2, np.float32), reward, ends, False, {}


def fit(*callbacks, epochs=6, algorithm=keras_pg.A2C, **arguments):
    agent = algorithm(keras_pg.mlp((4,), seed=0), seed=0)
    agent.num_minibatches = 1
    agent.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    settings = {"num_steps": 4, "steps_per_epoch": 1, "verbose": 0, **arguments}
    history = agent.fit(Scripted(), epochs=epochs, callbacks=list(callbacks), **settings)
    return agent, history.history


def test_the_history_tells_which_epochs_had_no_episode():
    _, history = fit()
    np.testing.assert_array_equal(history["episode_return"], RETURNS)


def test_early_stopping_waits_as_long_as_there_is_nothing_to_compare():
    stop = keras.callbacks.EarlyStopping("episode_return", patience=2, restore_best_weights=True)
    agent, history = fit(stop)
    assert len(history["episode_return"]) == 6
    assert stop.best == -6.0 and stop.best_epoch == 4
    assert int(agent.iteration) == 5  # taken back to the best epoch


def test_epochs_that_are_worse_count_against_patience_and_those_without_episodes_do_not(
    monkeypatch,
):
    monkeypatch.setattr(f"{__name__}.RETURNS", [-5.0, math.nan, -6.0, math.nan, -7.0, -8.0])
    stop = keras.callbacks.EarlyStopping("episode_return", patience=2)
    _, history = fit(stop)
    assert len(history["episode_return"]) == 5 and stop.best == -5.0


def test_checkpoints_are_of_the_best_epochs_only(tmp_path):
    saved = []

    class Checkpoint(keras.callbacks.ModelCheckpoint):
        def _save_model(self, epoch, batch, logs):
            before = self.best
            super()._save_model(epoch, batch, logs)
            if self.best != before:
                saved.append(epoch)

    checkpoint = Checkpoint(
        str(tmp_path / "best.weights.h5"),
        monitor="episode_return",
        save_best_only=True,
        save_weights_only=True,
    )
    fit(checkpoint)
    assert saved == [1, 4] and checkpoint.best == -6.0
    best = keras_pg.A2C(keras_pg.mlp((4,), seed=0), seed=0)
    best.load_weights(tmp_path / "best.weights.h5")
    assert int(best.iteration) == 5


def test_checkpoints_within_epochs_are_of_the_best_too(tmp_path):
    path = str(tmp_path / "best.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, "episode_return", save_best_only=True, save_weights_only=True, save_freq=1, mode="max"
    )
    fit(checkpoint)
    assert checkpoint.best == -6.0


def test_checkpoints_of_every_epoch_are_of_every_epoch(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / "{epoch}_{episode_return:.0f}.weights.h5"),
        monitor="episode_return",
        save_weights_only=True,
    )
    fit(checkpoint, epochs=2)
    assert {path.name for path in tmp_path.iterdir()} == {"1_nan.weights.h5", "2_-8.weights.h5"}


def test_the_learning_rate_falls_for_want_of_progress_not_of_episodes():
    reduce = keras.callbacks.ReduceLROnPlateau("episode_return", factor=0.5, patience=1)
    _, history = fit(reduce)
    # Of the epochs that can be compared only the last is no better than the best before.
    np.testing.assert_allclose(history["learning_rate"], [0.1] * 6, rtol=1e-6)
    assert float(reduce.model.optimizer.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize("algorithm", [keras_pg.A2C, keras_pg.PPO, keras_pg.MDPO])
def test_terminate_on_nan_looks_at_the_loss(algorithm):
    _, history = fit(keras.callbacks.TerminateOnNaN(), algorithm=algorithm)
    assert len(history["loss"]) == 6


def test_terminate_on_nan_ends_training_where_no_gradient_is_finite():
    class Overflowing(keras.layers.Layer):
        def call(self, x):
            return x + float("inf") * self.scale

        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

    encoder = keras.Sequential([keras_pg.mlp((4,), seed=0), Overflowing()])
    agent = keras_pg.A2C(encoder, keras_pg.mlp((4,), seed=0), seed=0)
    agent.compile(run_eagerly=True)
    history = agent.fit(
        Scripted(),
        epochs=3,
        num_steps=4,
        steps_per_epoch=1,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    assert len(history.epoch) == 1 and math.isnan(history.history["loss"][0])


def test_auto_is_the_largest_return_and_other_metrics_are_asked_about():
    stop = keras.callbacks.EarlyStopping("episode_return", patience=9)
    fit(stop, epochs=2)
    assert stop.mode == "max"
    with pytest.raises(ValueError, match="maximized or minimized"):
        fit(keras.callbacks.EarlyStopping("episode_length"), epochs=2)


def test_epochs_without_validation_are_no_epochs_of_its_monitors(tmp_path):
    path = tmp_path / "best.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(path), "val_episode_length", save_best_only=True, save_weights_only=True, mode="min"
    )
    stop = keras.callbacks.EarlyStopping("val_episode_return", patience=1)

    class Short(Scripted):
        def step(self, action):
            return np.zeros(2, np.float32), 1.0, True, False, {}

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, history = fit(
            stop, checkpoint, validation_env=Short(), validation_freq=3, validation_episodes=1
        )
    assert len(history["val_episode_return"]) == 2 and stop.best == 1.0
    best = keras_pg.A2C(keras_pg.mlp((4,), seed=0), seed=0)
    best.load_weights(path)
    assert int(best.iteration) == 3


def test_a_metric_that_does_not_exist_is_still_warned_of():
    with pytest.warns(UserWarning, match="`episode_retrun` which is not available"):
        fit(keras.callbacks.EarlyStopping("episode_retrun", mode="max"), epochs=1)


def test_a_list_of_callbacks_may_be_keras_own():
    stop = keras.callbacks.EarlyStopping("episode_return", patience=9)
    fit_with = keras.callbacks.CallbackList([stop])
    agent = keras_pg.A2C(keras_pg.mlp((4,), seed=0), seed=0)
    agent.compile(run_eagerly=True)
    agent.fit(Scripted(), epochs=2, num_steps=4, steps_per_epoch=1, verbose=0, callbacks=fit_with)
    assert stop.best == -8.0
