import json
import traceback

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import keras_pg
from environments import Clockwork, Faulty, Recording, perturbed_agent
from keras_pg import distributions
from keras_pg.rollouts import collector_for
from keras_pg.rollouts.evaluation import play_episodes
from keras_pg.rollouts.vector_env import VectorEnvCollector

MODES = list(AutoresetMode)
# Environments whose episodes last 1, 9 and 40 steps.
LENGTHS = (1, 9, 40)


class ZeroEngine:
    def load_weights(self):
        pass

    def __call__(self, observations, noise):
        actions = np.zeros(len(observations), np.int64)
        return actions, actions


def clockworks():
    return [lambda length=length: Clockwork((length,)) for length in LENGTHS]


def collector_of(env, num_steps=16):
    distribution = distributions.for_action_space(env.single_action_space)
    return VectorEnvCollector(env, ZeroEngine(), distribution, num_steps=num_steps, gamma=0.9)


def clockwork_return(k, length):
    """The return of episode k under action 0."""
    return sum(10 * k + t for t in range(length))


@pytest.fixture(scope="module")
def cartpole_agent():
    """Its samples are almost uniform, so they differ from its mode."""
    agent = keras_pg.PPO(seed=0)
    env = gymnasium.make("CartPole-v1")
    agent.build(env.observation_space, env.action_space)
    return agent


# ---------------------------------------------------------------------------------- play_episodes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("episodes", "quotas"),
    [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (3, 2, 2)), (12, (4, 4, 4))],
)
def test_each_environment_plays_its_share_however_long_its_episodes_are(episodes, quotas, mode):
    collector = collector_of(SyncVectorEnv(clockworks(), autoreset_mode=mode))
    played = play_episodes(collector, episodes, seed=0)
    expected = [
        (clockwork_return(k, length), length)
        for length, quota in zip(LENGTHS, quotas)
        for k in range(quota)
    ]
    returns, lengths = zip(*expected)
    np.testing.assert_array_equal(played.lengths, lengths)
    np.testing.assert_array_equal(played.returns, returns)


def test_the_first_episode_of_environment_i_starts_from_seed_plus_i():
    # A CartPole episode of constant action lasts as long as its first state has it.
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3)
    played = play_episodes(collector_of(env), 3, seed=11)
    single = gymnasium.make("CartPole-v1")
    for i, length in enumerate(played.lengths):
        single.reset(seed=11 + i)
        steps, terminated = 0, False
        while not terminated:
            terminated, steps = single.step(0)[2], steps + 1
        assert length == steps


def test_the_same_seed_plays_the_same_episodes(cartpole_agent):
    env = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3)
    collector = collector_for(env, cartpole_agent.actor, num_steps=16, gamma=0.9)
    for deterministic in (True, False):
        several = [
            play_episodes(collector, 9, seed=seed, deterministic=deterministic)
            for seed in (0, 0, 50)
        ]
        np.testing.assert_array_equal(several[0], several[1])
        assert (several[0].lengths != several[2].lengths).any()


@pytest.mark.parametrize("deterministic", [True, False])
def test_episodes_are_played_by_the_mode_or_by_samples(deterministic):
    space = Box(-np.inf, np.inf, (2,))
    env = SyncVectorEnv([lambda: Recording(space, lengths=(30,))])
    agent = perturbed_agent(env.single_observation_space, space)
    collector = collector_for(env, agent.actor, num_steps=30, gamma=0.9)
    play_episodes(collector, 1, seed=4, deterministic=deterministic)
    observations = np.float32([(4, 0, t, 0) for t in range(30)])
    mean, log_std = np.split(agent.actor(observations).numpy(), 2, axis=-1)
    noise = (env.envs[0].received - mean) / np.exp(log_std)
    if deterministic:
        np.testing.assert_allclose(noise, 0, atol=1e-4)
    else:
        # 60 standard normal numbers: three sigma of their mean and of their mean square.
        assert np.abs(noise.mean()) < 3 / np.sqrt(60)
        assert np.abs((noise**2).mean() - 1) < 3 * np.sqrt(2 / 60)


def test_an_episode_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr("keras_pg.rollouts.evaluation.LONGEST_EPISODE", 100)
    env = SyncVectorEnv([lambda: Clockwork((3,)), lambda: Clockwork((10_000,))])
    with pytest.raises(RuntimeError, match=r"Environment 1 .* 100 steps.*TimeLimit"):
        play_episodes(collector_of(env), 2, seed=0)


# ------------------------------------------------------------------------------------- evaluate


def test_evaluate_gives_the_means_over_the_episodes():
    env = SyncVectorEnv(clockworks())
    agent = perturbed_agent(env.single_observation_space, env.single_action_space)
    # The lengths do not depend on the actions, as the returns do.
    result = agent.evaluate(env, episodes=7, verbose=0)
    assert result["episode_length"] == pytest.approx((3 * 1 + 2 * 9 + 2 * 40) / 7)
    assert set(result) == {"episode_return", "episode_length"}
    # The environment is the caller's, and still open.
    env.reset()


def test_evaluate_leaves_the_agent_as_it_was(cartpole_agent):
    before = [np.copy(variable) for variable in cartpole_agent.variables]
    results = [
        cartpole_agent.evaluate("CartPole-v1", episodes=5, verbose=0, **arguments)
        for arguments in ({}, {}, {"vectorization": "async"}, {"deterministic": False})
    ]
    metrics = {id(variable) for variable in cartpole_agent.metrics_variables}
    for variable, then in zip(cartpole_agent.variables, before):
        if id(variable) not in metrics:
            np.testing.assert_array_equal(variable, then)
    assert results[0] == results[1] == results[2] != results[3]


def test_what_evaluate_said_holds_until_the_agent_learns():
    agent = keras_pg.A2C(keras_pg.mlp((4,), seed=0), keras_pg.mlp((4,), seed=1), seed=0)
    agent.compile(run_eagerly=True)
    assert agent.evaluation() is None
    result = agent.evaluate("CartPole-v1", episodes=np.int64(3), seed=np.int64(5), verbose=0)
    conditions = {"env": "CartPole-v1", "episodes": 3, "deterministic": True, "seed": 5}
    assert agent.evaluation() == {**result, **conditions}
    json.dumps(agent.evaluation())
    weights = agent.actor.get_weights()
    agent.actor.set_weights([2.0 * weight for weight in weights])
    assert agent.evaluation() is None
    agent.actor.set_weights(weights)
    assert agent.evaluation() == {**result, **conditions}
    agent.evaluate(gymnasium.make("CartPole-v1"), episodes=1, verbose=0)
    assert agent.evaluation()["env"] == "CartPole-v1"
    agent.fit("CartPole-v1", num_envs=1, num_steps=4, epochs=1, steps_per_epoch=1, verbose=0)
    assert agent.evaluation() is None


def test_an_error_in_the_environment_reaches_the_caller_of_evaluate_as_it_is():
    agent = perturbed_agent(Faulty.observation_space, Faulty.action_space)
    closed = []
    env = Faulty("error", at=5)
    env.close = lambda: closed.append(True)
    with pytest.raises(ZeroDivisionError) as caught:
        agent.evaluate(env, episodes=1, verbose=0)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "step" and frames[-1].filename.endswith("environments.py")
    assert closed


def test_a_nan_in_the_environment_ends_evaluate_with_an_error():
    agent = perturbed_agent(Faulty.observation_space, Faulty.action_space)
    with pytest.raises(FloatingPointError, match=r"reward.*environment 0 at step 5"):
        agent.evaluate(Faulty("reward", at=5), episodes=1, verbose=0)
