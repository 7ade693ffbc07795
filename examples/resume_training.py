"""Kill this at any time and start it again: it goes on from the last epoch."""

import keras

import keras_pg

agent = keras_pg.PPO(seed=0)
agent.fit(
    "CartPole-v1",
    epochs=20,
    steps_per_epoch=2,
    callbacks=[
        keras.callbacks.BackupAndRestore("backup"),
        keras.callbacks.CSVLogger("history.csv", append=True),
    ],
)
print(agent.evaluate("CartPole-v1", verbose=0))
