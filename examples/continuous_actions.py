"""PPO on Pendulum: Gaussian actions, reward scaling, a learning rate that decays."""

import keras

import keras_pg

TIMESTEPS, NUM_ENVS, NUM_STEPS = 150_000, 8, 256
agent = keras_pg.PPO(
    gamma=0.95, normalize_rewards=True, update_epochs=10, num_minibatches=16, seed=0
)
gradient_steps = TIMESTEPS // (NUM_ENVS * NUM_STEPS) * 10 * 16
schedule = keras.optimizers.schedules.PolynomialDecay(1e-3, gradient_steps, 1e-4)
agent.compile(keras.optimizers.Adam(schedule, global_clipnorm=0.5))
agent.fit("Pendulum-v1", total_timesteps=TIMESTEPS, num_envs=NUM_ENVS, num_steps=NUM_STEPS)
print(agent.evaluate("Pendulum-v1", episodes=100, verbose=0))
