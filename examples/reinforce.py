"""REINFORCE on CartPole: whole episodes, without a baseline and with a learned one."""

import keras
import numpy as np

import keras_pg

for advantage in ("reward_to_go", "return_minus_baseline"):
    agent = keras_pg.REINFORCE(advantage=advantage, normalize_advantages=True, seed=0)
    agent.compile(
        optimizer=keras.optimizers.Adam(3e-3, global_clipnorm=0.5),
        # Without a baseline there is no critic, and this has nothing to do.
        critic_optimizer=keras.optimizers.Adam(1e-2, global_clipnorm=0.5),
    )
    # One iteration is one episode in each environment, cut after `num_steps` steps. Training ends
    # with the iteration that reaches `total_timesteps`.
    history = agent.fit(
        "CartPole-v1", num_envs=4, num_steps=500, total_timesteps=80_000, verbose=0
    ).history
    print(f"{advantage}: {int(agent.iteration)} iterations, {int(agent.env_steps)} steps")
    print("  training:  ", np.round(history["episode_return"]))
    print("  evaluation:", agent.evaluate("CartPole-v1", episodes=100, verbose=0))
