"""Learning on native environments, and that it is the learning of the vector path."""

import keras
import numpy as np

import keras_pg
from keras_pg import envs


def cartpole_agent(seed, learning_rate=1e-3, **compile_arguments):
    agent = keras_pg.PPO(gamma=0.98, gae_lambda=0.8, update_epochs=8, num_minibatches=4, seed=seed)
    agent.compile(keras.optimizers.Adam(learning_rate), **compile_arguments)
    return agent


def falling_to_zero(gradient_steps):
    """With a constant rate some seeds lose what they had learnt, which ones the processor tells."""
    return keras.optimizers.schedules.PolynomialDecay(1e-3, gradient_steps, 0.0)


def test_ppo_solves_cartpole_in_one_program():
    learning_rate = falling_to_zero(150_000 // (32 * 32) * 8 * 4)
    agent = cartpole_agent(0, learning_rate, steps_per_execution=10)
    agent.fit(envs.CartPole(), num_envs=32, num_steps=32, total_timesteps=150_000, verbose=0)
    result = agent.evaluate(envs.CartPole(), episodes=100, num_envs=50, verbose=0)
    assert result["episode_return"] >= 475
    # The policy is as good where Gymnasium steps it.
    assert agent.evaluate("CartPole-v1", episodes=20, verbose=0)["episode_return"] >= 475


def test_ppo_solves_pendulum_in_one_program():
    agent = keras_pg.PPO(gamma=0.9, update_epochs=10, num_minibatches=16, seed=1)
    learning_rate = falling_to_zero(250_000 // (16 * 128) * 10 * 16)
    agent.compile(keras.optimizers.Adam(learning_rate), steps_per_execution=5)
    agent.fit(envs.Pendulum(), num_envs=16, num_steps=128, total_timesteps=250_000, verbose=0)
    result = agent.evaluate(envs.Pendulum(), episodes=64, num_envs=64, verbose=0)
    assert result["episode_return"] >= -220


def test_the_curve_is_that_of_the_vector_path(seeds=5):
    """In each of three parts of training, means over seeds differ by less than their errors."""
    curves = {"native": [], "vector": []}
    for seed in range(seeds):
        for kind, env in (
            ("native", envs.CartPole()),
            ("vector", envs.to_gymnasium(envs.CartPole(), 8)),
        ):
            agent = cartpole_agent(seed, jit_compile=kind == "native")
            history = agent.fit(
                env, num_envs=8, num_steps=32, epochs=3, steps_per_epoch=25, verbose=0
            )
            curves[kind].append(history.history["episode_return"])
    native, vector = (np.array(curves[kind]) for kind in ("native", "vector"))
    error = np.sqrt((native.var(axis=0, ddof=1) + vector.var(axis=0, ddof=1)) / seeds)
    assert (np.abs(native.mean(axis=0) - vector.mean(axis=0)) < 3.5 * error).all()
    assert (np.diff(native.mean(axis=0)) > 0).all()
