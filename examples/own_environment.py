"""An environment of one's own that TensorFlow compiles, stepped 256 copies at a time."""

import gymnasium
import tensorflow as tf

import keras_pg
from keras_pg import randomness


class Docking(keras_pg.envs.NativeEnv):
    """A ship on a line is to come to rest at 0: it is pushed left, not at all, or right."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,))
    action_space = gymnasium.spaces.Discrete(3)
    max_episode_steps = 100

    def reset(self, seeds):
        return 4.0 * randomness.uniform(seeds, (2,)) - 2.0  # position and velocity

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        position, velocity = tf.unstack(state, axis=-1)
        velocity += 0.1 * (tf.cast(actions, tf.float32) - 1.0)
        position += 0.1 * velocity
        lost = tf.abs(position) > 5.0
        reward = 1.0 - tf.abs(position) - 0.1 * tf.abs(velocity)
        return tf.stack([position, velocity], axis=-1), reward, lost


agent = keras_pg.PPO(gamma=0.98, num_minibatches=8, update_epochs=4, seed=0)
# Collecting and learning are one compiled program, of which each call runs 5 iterations.
agent.compile("adam", steps_per_execution=5)
agent.fit(Docking(), num_envs=256, num_steps=32, total_timesteps=500_000)
print(agent.evaluate(Docking(), num_envs=256, episodes=256, verbose=0))
