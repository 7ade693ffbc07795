"""GRPO on a contextual bandit, from scratch, and then kept near what was learnt. No critic."""

import gymnasium
import keras
import numpy as np

import keras_pg


class Bandit(gymnasium.Env):
    """Five arms with five numbers in sight; an arm pays its number, and arm 0 half as much more."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (5,))
    action_space = gymnasium.spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = self.np_random.uniform(-1.0, 1.0, 5).astype(np.float32)
        return self.shown, {}

    def step(self, action):
        return self.shown, float(self.shown[action] + 0.5 * (action == 0)), True, False, {}


# Eight groups of eight: in a group all see the same numbers, and their arms are compared.
agent = keras_pg.GRPO(group_size=8, seed=0)
agent.compile(keras.optimizers.Adam(0.01))
history = agent.fit(Bandit, num_envs=64, num_steps=1, epochs=10, steps_per_epoch=20, verbose=0)
print("return:", np.round(history.history["episode_return"], 2))
print("groups that taught nothing:", np.round(history.history["frac_zero_std"], 2))

# The same task again from a new policy, but not far from that of the first.
near = keras_pg.GRPO(group_size=8, reference=agent, kl_coef=0.5, kl_estimator="exact", seed=1)
near.compile(keras.optimizers.Adam(0.01))
history = near.fit(Bandit, num_envs=64, num_steps=1, epochs=10, steps_per_epoch=20, verbose=0)
print("KL to the first:", np.round(history.history["kl_reference"], 2))
print("evaluation:", near.evaluate(Bandit, episodes=1000, num_envs=8, verbose=0))
