"""Masks of legal actions: no taxi drives into a wall, or picks up who is not there."""

import gymnasium

import keras_pg
from keras_pg.wrappers import ActionMask


def taxi():
    """Taxi, whose `info["action_mask"]` tells which of its 6 actions would do anything."""
    return ActionMask(gymnasium.make("Taxi-v4"))


agent = keras_pg.PPO(gamma=0.95, num_minibatches=8, update_epochs=4, entropy_coef=0.01, seed=0)
agent.compile("adam")
agent.fit(taxi, total_timesteps=200_000, num_envs=16)
print(agent.evaluate(taxi, episodes=100, verbose=0))

# A served policy is asked with both: {"observation": [314], "action_mask": [[1, 1, 0, 0, 0, 0]]}.
observation, _ = taxi().reset(seed=0)
print(observation, "->", agent.act(observation))
print("exported to", agent.export("policies/taxi"))
