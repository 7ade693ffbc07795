"""A2C on CartPole with three Ψ: from a critic of states, V(s), and from one of actions, Q(s, a)."""

import keras
import numpy as np

import keras_pg

for name, advantage in {
    "r + γ V(s') - V(s)": "td",
    "n steps, then V": keras_pg.advantages.NStep(5),
    "Q(s, a) - V(s)": "advantage",
}.items():
    agent = keras_pg.A2C(advantage=advantage, entropy_coef=0.001, seed=0)
    agent.compile(keras.optimizers.RMSprop(3e-3, rho=0.99, epsilon=1e-5, global_clipnorm=0.5))
    history = agent.fit("CartPole-v1", num_steps=16, total_timesteps=50_000, verbose=0).history
    print(name, "by", type(agent.critic).__name__)
    print("  training:  ", np.round(history["episode_return"]))
    print("  evaluation:", agent.evaluate("CartPole-v1", episodes=100, verbose=0))
