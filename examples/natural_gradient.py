"""NPG on CartPole, by the exact Fisher matrix and by the empirical one: what a step costs in KL."""

import keras
import numpy as np

import keras_pg

for fisher in ("exact", "empirical"):
    agent = keras_pg.NPG(max_kl=0.01, cg_iters=10, cg_damping=0.1, fisher=fisher, seed=0)
    agent.compile(keras.optimizers.Adam(1e-3))  # the critic's: the actor has none
    history = agent.fit(
        "CartPole-v1", num_steps=128, epochs=30, steps_per_epoch=1, verbose=0
    ).history
    print(fisher)
    # Damping is counted in the step's length, so a step costs less than max_kl. What the quadratic
    # model leaves out may make it cost more: nothing checks that, which is TRPO's line search.
    print("  KL of the steps:", np.round(history["kl"], 4))
    print("  training:       ", np.round(history["episode_return"]))
    print("  evaluation:     ", agent.evaluate("CartPole-v1", episodes=100, verbose=0))
