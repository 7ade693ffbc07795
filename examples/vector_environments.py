"""Environments in processes of their own, and EnvPool's (pip install ".[envpool]" in the clone)."""

import keras_pg

if __name__ == "__main__":  # processes import this file again
    agent = keras_pg.PPO(num_minibatches=8, seed=0)
    agent.fit("CartPole-v1", num_envs=4, vectorization="async", total_timesteps=20_000)

    import envpool

    env = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=16, seed=0)
    agent.fit(env, num_steps=128, total_timesteps=40_000)
    print(agent.evaluate("CartPole-v1", verbose=0))
