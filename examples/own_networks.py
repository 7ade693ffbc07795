"""Any Keras model as the encoder, and an optimizer of its own for the critic."""

import keras

import keras_pg


def encoder():
    """A network with a skip connection, for CartPole's observations of 4 numbers."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(64, "relu")(inputs)
    hidden = keras.layers.LayerNormalization()(hidden)
    return keras.Model(inputs, keras.layers.Concatenate()([inputs, hidden]))


agent = keras_pg.PPO(actor=encoder(), critic=encoder(), num_minibatches=8, seed=0)
agent.compile(
    optimizer=keras.optimizers.Adam(3e-4, global_clipnorm=0.5),
    critic_optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=0.5),
)
agent.fit("CartPole-v1", total_timesteps=40_000)
print(agent.evaluate("CartPole-v1", verbose=0))
