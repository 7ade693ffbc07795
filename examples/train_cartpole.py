"""PPO on CartPole: fit with stock Keras callbacks, evaluate, save, load."""

import keras

import keras_pg

agent = keras_pg.PPO(seed=0)
agent.fit(
    "CartPole-v1",
    total_timesteps=60_000,
    validation_env="CartPole-v1",
    callbacks=[
        keras.callbacks.EarlyStopping(
            "val_episode_return", mode="max", patience=5, restore_best_weights=True
        ),
        keras_pg.callbacks.LearningCurve("learning_curve.png", title="CartPole-v1"),
    ],
)
print(agent.evaluate("CartPole-v1", episodes=100, verbose=0))

agent.save("cartpole.keras")
same_agent = keras.models.load_model("cartpole.keras")
print(same_agent.act([0.0, 0.1, 0.0, -0.1]))
