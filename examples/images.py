"""Observations that are images: MinAtar's Breakout as a native environment, one network for both.

The policy that is exported takes the game's own bytes.
"""

import keras
import numpy as np
import tensorflow as tf

import keras_pg

env = keras_pg.envs.Breakout()
# Actor and critic share what they see; (filters, kernel size, stride), then a hidden layer.
encoder = keras_pg.cnn([(16, 3, 1)], units=(128,), seed=0)
agent = keras_pg.PPO(
    actor=encoder, critic=encoder, update_epochs=4, num_minibatches=8, entropy_coef=0.01, seed=0
)
agent.compile(keras.optimizers.Adam(1e-3, global_clipnorm=0.5))
agent.fit(env, num_envs=64, num_steps=64, total_timesteps=80_000)
print(agent.evaluate(env, episodes=50, num_envs=50, verbose=0))

policy = tf.saved_model.load(str(agent.export("policies/breakout"))).signatures["serving_default"]
board = np.zeros((1, 10, 10, 4), np.uint8)
board[0, 9, 4, 0] = board[0, 8, 5, 1] = board[0, 7, 4, 2] = 1  # paddle, ball, where it was
print(policy(observation=board)["probabilities"].numpy())
