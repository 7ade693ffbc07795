"""Experiment trackers and tuners made for Keras models, without a network."""

import keras
import pytest

import keras_pg

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def fit(*callbacks):
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)
    settings = {"epochs": 3, "steps_per_epoch": 5, "verbose": 0}
    return agent.fit("CartPole-v1", callbacks=list(callbacks), **settings).history


def test_keras_tuner_gives_its_best_models_back(tmp_path):
    import keras_tuner

    def build(hp):
        agent = keras_pg.A2C(gamma=hp.Choice("gamma", [0.9, 0.99]), seed=0)
        agent.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
        return agent

    tuner = keras_tuner.GridSearch(
        build, keras_tuner.Objective("episode_return", "max"), directory=tmp_path
    )
    tuner.search("CartPole-v1", epochs=3, steps_per_epoch=5, verbose=0)
    best, other = tuner.get_best_models(2)
    assert {round(best.gamma, 2), round(other.gamma, 2)} == {0.9, 0.99}
    trials = tuner.oracle.get_best_trials(2)
    assert trials[0].score >= trials[1].score
    # Of the best epoch of its trial, in which 200 steps are done.
    assert int(best.env_steps) in (200, 400, 600)
    assert best.act([0.0, 0.0, 0.0, 0.0]).item() in (0, 1)


def test_weights_and_biases_logs_every_epoch():
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    with wandb.init(project="keras_pg") as run:
        history = fit(WandbMetricsLogger())
        summary = dict(run.summary)
    for name, values in history.items():
        assert summary[f"epoch/{name}"] == pytest.approx(values[-1])


def test_mlflow_logs_every_epoch(tmp_path):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        history = fit(mlflow.keras.MlflowCallback())
    client = mlflow.MlflowClient()
    for name in ("episode_return", "env_steps", "loss"):
        logged = [m.value for m in client.get_metric_history(run.info.run_id, name)]
        assert logged == pytest.approx(history[name])
