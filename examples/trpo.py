"""TRPO on Acrobot: every step is within `max_kl`. With less damping they are longer."""

import keras
import numpy as np

import keras_pg

for cg_damping in (0.1, 0.001):
    agent = keras_pg.TRPO(max_kl=0.01, cg_damping=cg_damping, seed=0)
    agent.compile(keras.optimizers.Adam(1e-3))  # the critic's: the actor has none
    # One iteration an epoch, so that the history has each step (and NaN where no episode ended).
    history = agent.fit("Acrobot-v1", epochs=30, steps_per_epoch=1, verbose=0).history
    print(f"cg_damping={cg_damping}")
    print("  largest KL of a step:", max(history["kl"]))
    print("  steps tried:         ", np.int32(history["line_search_steps"]))
    print("  accepted:            ", sum(history["line_search_success"]), "of 30")
    print("  training:            ", np.round(history["episode_return"]))
    print("  evaluation:          ", agent.evaluate("Acrobot-v1", episodes=100, verbose=0))
