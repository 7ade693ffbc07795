"""Learning curves in TensorBoard, Weights & Biases and MLflow, and a search by KerasTuner.

Each takes an agent for what it is, a Keras model. In a clone: pip install ".[tracking]"
"""

import keras
import keras_tuner
import mlflow
import wandb
from wandb.integration.keras import WandbMetricsLogger

import keras_pg


def build(hp):
    """An agent with hyperparameters of the tuner's choice."""
    agent = keras_pg.PPO(gamma=hp.Choice("gamma", [0.98, 0.99]), num_minibatches=8, seed=0)
    agent.compile(keras.optimizers.Adam(hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")))
    return agent


if __name__ == "__main__":
    agent = keras_pg.PPO(num_minibatches=8, seed=0)
    mlflow.set_tracking_uri("sqlite:///runs/mlflow.db")
    with (
        wandb.init(project="keras_pg", mode="offline", dir="runs") as run,  # online without `mode`
        mlflow.start_run(),
    ):
        agent.fit(
            "CartPole-v1",
            total_timesteps=50_000,
            callbacks=[
                # Against environment steps; the other two count epochs, and log `env_steps`.
                keras_pg.callbacks.TensorBoard("runs/tensorboard", histogram_freq=5),
                WandbMetricsLogger(),
                mlflow.keras.MlflowCallback(),
            ],
        )

    tuner = keras_tuner.RandomSearch(
        build,
        objective=keras_tuner.Objective("episode_return", "max"),
        max_trials=2,
        directory="runs",
        project_name="tuner",
    )
    tuner.search("CartPole-v1", total_timesteps=20_000, verbose=0)
    (best,) = tuner.get_best_models(1)
    print(best.evaluate("CartPole-v1", verbose=0))
