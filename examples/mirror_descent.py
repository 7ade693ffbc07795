"""MDPO on CartPole: a step size that falls linearly to 0, and learning rates that fall with it."""

import keras
import numpy as np

import keras_pg

TIMESTEPS, NUM_ENVS, NUM_STEPS, UPDATE_EPOCHS = 61_440, 8, 64, 10
gradient_steps = TIMESTEPS // (NUM_ENVS * NUM_STEPS) * UPDATE_EPOCHS


def falling_from(start):
    """A schedule from `start` to 0 over the gradient steps of the whole training."""
    return keras.optimizers.schedules.PolynomialDecay(start, gradient_steps, 0.0)


agent = keras_pg.MDPO(step_size=falling_from(1.0), update_epochs=UPDATE_EPOCHS, seed=0)
# Adam's steps are as long for a small gradient as for a large one. Near a step size of 0 the KL
# divergence is all that counts, and only a learning rate near 0 keeps the policy where it is.
agent.compile(
    optimizer=keras.optimizers.Adam(falling_from(3e-3), global_clipnorm=0.5),
    critic_optimizer=keras.optimizers.Adam(falling_from(1e-2), global_clipnorm=0.5),
)
history = agent.fit(
    "CartPole-v1", num_envs=NUM_ENVS, num_steps=NUM_STEPS, total_timesteps=TIMESTEPS, verbose=0
).history
print("training:   ", np.round(history["episode_return"]))
print("KL:         ", np.round(history["approx_kl"], 4))
print("step size at the end:", float(agent.step_size))
print("evaluation: ", agent.evaluate("CartPole-v1", episodes=100, verbose=0))
