"""What is computed of a rollout by itself."""

import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import keras_pg
from environments import Clockwork
from keras_pg.rollouts import make_vector_env
from keras_pg.rollouts.rollout import state_values
from stepping import CONTINUOUS, built, make_rollout


def of_both(rollout, value_of):
    """V(s_t) and V(s_{t+1}) by evaluating every row of both."""
    values, next_values = (
        value_of(x.reshape(-1, *x.shape[2:])).numpy().reshape(x.shape[:2])
        for x in (rollout.observations, rollout.next_observations)
    )
    return values, np.where(rollout.terminated, 0.0, next_values)


def counted(value_of):
    """The function, and a list of how many rows it was asked for."""
    sizes = []

    def counting(observations, k):
        assert int(k) == len(sizes)
        sizes.append(len(observations))
        return value_of(observations)

    return counting, sizes


@pytest.mark.parametrize("T, N", [(1, 1), (1, 5), (8, 4), (50, 1)])
def test_values_are_those_of_each_state_and_successor(T, N):
    critic = built(keras_pg.A2C).critic
    rollout = make_rollout(built(keras_pg.A2C), T, N, seed=3)
    value_of, sizes = counted(critic)
    found = state_values(tf.nest.map_structure(tf.constant, rollout), value_of)
    for one, other in zip(found, of_both(rollout, critic), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    # Each state once, and of what was cut before the last step one of each environment at a time.
    cut = (rollout.truncated & ~rollout.terminated)[:-1].sum(axis=0)
    assert sizes == [(T + 1) * N] + [N] * max(cut)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_all_steps_may_be_cut(jit_compile):
    agent = built(keras_pg.A2C)
    rollout = make_rollout(agent)
    rollout = rollout._replace(
        truncated=np.ones_like(rollout.truncated),
        next_observations=make_rollout(agent, seed=1).observations,
    )
    values_of = tf.function(
        lambda steps: state_values(steps, agent._state_value),
        autograph=False,
        jit_compile=jit_compile,
    )
    found = values_of(tf.nest.map_structure(tf.constant, rollout))
    for one, other in zip(found, of_both(rollout, agent.critic), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_of_what_environments_give_whenever_they_reset(mode):
    env = SyncVectorEnv([lambda: Clockwork((3, 5))] * 2, autoreset_mode=mode)
    agent = keras_pg.A2C(seed=0)
    agent.build(env.single_observation_space, env.single_action_space)
    collector = agent._collector(env, 16, whole_episodes=False)
    collector.reset(0)
    rollout = collector.collect(np.random.default_rng(0))
    assert (rollout.truncated | rollout.terminated).sum() > 4
    check_collected(rollout, agent)


@pytest.mark.parametrize("whole_episodes", [False, True])
@pytest.mark.parametrize("name", ["TMaze-v0", "Catch-v0", "CartPole-v1"])
def test_of_native_environments_that_cut_often(name, whole_episodes):
    """Of vectors and images, several times in one rollout, or in the first step of it."""
    env = keras_pg.envs.make(f"keras_pg/{name}")
    for limit in (1, 3):
        env.max_episode_steps = limit
        agent = keras_pg.A2C(seed=0, normalize_observations=False)
        copies, _ = make_vector_env(env, 3)
        agent.build(copies.single_observation_space, copies.single_action_space)
        collector = agent._collector(copies, 8, whole_episodes=whole_episodes)
        collector.reset(0)
        _, rollout, _ = collector.next_rollout(tf.constant([0, 0], tf.int64))
        rollout = tf.nest.map_structure(lambda x: x.numpy(), rollout)
        cut = rollout.truncated & rollout.valid
        assert (cut.sum(axis=0) == (1 if whole_episodes else 8 // limit)).all()
        check_collected(rollout, agent)


def test_samples_of_a_critic_of_actions_are_others_in_each_call():
    agent = built(keras_pg.A2C, CONTINUOUS, advantage="advantage")
    states = tf.constant(make_rollout(agent).observations[0])
    first, second, again = (agent._state_value(states, tf.constant(k)) for k in (0, 1, 1))
    np.testing.assert_array_equal(second, again)
    assert np.abs(first - second).min() > 1e-4


def check_collected(rollout, agent):
    found = state_values(tf.nest.map_structure(tf.constant, rollout), agent._state_value)
    for one, other in zip(found, of_both(rollout, agent.critic), strict=True):
        np.testing.assert_allclose(one[rollout.valid], other[rollout.valid], atol=1e-5)
