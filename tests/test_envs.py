"""Native environments against Gymnasium's, and as Gymnasium's."""

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.utils.env_checker import check_env

import keras_pg
from keras_pg import envs
from keras_pg.rollouts import make_vector_env
from keras_pg.rollouts.vector_env import VectorEnvCollector

# Of random states: wide enough to end some episodes in one step.
RANGES = {
    "CartPole-v1": ([-2.5, -3.0, -0.22, -3.0], [2.5, 3.0, 0.22, 3.0]),
    "Acrobot-v1": ([-np.pi, -np.pi, -12.0, -28.0], [np.pi, np.pi, 12.0, 28.0]),
    "Pendulum-v1": ([-9.0, -8.0], [9.0, 8.0]),
    "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
}
OFFERED = sorted(RANGES)


def transitions(name, count=3000):
    """(states, actions, next observations, rewards, terminated) of Gymnasium's environment.

    From random states, and from those that random actions lead to.
    """
    env = gymnasium.make(name).unwrapped
    env.action_space.seed(0)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        if i % 30 == 0:
            env.reset(seed=i)
        elif i % 3 == 0:
            env.state = rng.uniform(*RANGES[name]).astype(np.float32)
        state = np.float32(env.state)
        env.state = state.astype(np.float64)
        env.steps_beyond_terminated = None
        action = env.action_space.sample()
        observation, reward, terminated, _, _ = env.step(action)
        rows.append((state, action, observation, reward, terminated))
    return [np.array(column) for column in zip(*rows)]


@pytest.mark.parametrize("name", OFFERED)
def test_steps_are_those_of_gymnasium(name):
    states, actions, observations, rewards, terminated = transitions(name)
    env = envs.NAMES[name]()
    state, found, ended = env.step(tf.constant(states), tf.constant(actions), None)
    # What float32 loses is relative to the largest numbers that a sum is of.
    largest = np.max(RANGES[name][1])
    np.testing.assert_allclose(env.observe(state), observations, rtol=1e-5, atol=2e-5 * largest)
    np.testing.assert_allclose(found, rewards, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ended, terminated)
    assert terminated.any() == (name != "Pendulum-v1") and found.dtype == tf.float32


@pytest.mark.parametrize("name", OFFERED)
def test_spaces_and_limits_are_those_of_gymnasium(name):
    env, theirs = envs.NAMES[name](), gymnasium.make(name)
    assert env.observation_space == theirs.observation_space
    assert env.action_space == theirs.action_space
    assert env.max_episode_steps == theirs.spec.max_episode_steps


@pytest.mark.parametrize("name", OFFERED)
def test_first_states_have_the_distribution_of_gymnasiums(name):
    seeds = np.stack([np.arange(2000), np.zeros(2000, int)], axis=-1)
    env = envs.NAMES[name]()
    observations = env.observe(env.reset(tf.constant(seeds))).numpy()
    theirs = gymnasium.make(name)
    expected = np.stack([theirs.reset(seed=i)[0] for i in range(2000)])
    assert observations.dtype == expected.dtype
    for one, other in zip(observations.T, expected.T):
        quantiles = np.linspace(0, 1, 11)
        spread = max(np.ptp(other), 1e-6)
        ours, wanted = np.quantile(one, quantiles), np.quantile(other, quantiles)
        np.testing.assert_allclose(ours, wanted, atol=0.1 * spread)


def test_no_two_of_many_first_states_are_alike():
    seeds = tf.constant([[i, n] for i in range(30) for n in range(30)], tf.int64)
    assert len(np.unique(envs.CartPole().reset(seeds), axis=0)) == 900


# ------------------------------------------------------------------------------- as Gymnasium's


@pytest.mark.parametrize("name", sorted(envs.NAMES))
@pytest.mark.filterwarnings("ignore:.*(Box|symmetric|infinity|render|deprecat)")
def test_gymnasiums_checker_passes(name):
    env = gymnasium.make(f"keras_pg/{name}")
    assert env.spec.max_episode_steps == envs.NAMES[name].max_episode_steps
    check_env(env.unwrapped, skip_render_check=True)


class Countdown(envs.NativeEnv):
    """Observed: what is left of the last digit of the seed, or of its complement, and the step."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    max_episode_steps = 4

    def reset(self, seeds):
        seeds = tf.maximum(seeds, tf.bitwise.invert(seeds))[:, 0]
        return {"left": tf.cast(seeds % 10, tf.float32), "steps": tf.zeros_like(seeds)}

    def observe(self, state):
        return tf.stack([state["left"], tf.cast(state["steps"], tf.float32)], axis=-1)

    def step(self, state, actions, seeds):
        left = state["left"] - 1.0
        state = {"left": left, "steps": state["steps"] + 1}
        return state, tf.cast(actions, tf.float32), left <= 0.0


def test_episodes_end_and_the_next_begins_in_the_same_step():
    env = envs.to_gymnasium(Countdown(), num_envs=3)
    observations, _ = env.reset(seed=[2, 4, 9])
    np.testing.assert_array_equal(observations, [[2, 0], [4, 0], [9, 0]])
    seen = []
    for _ in range(4):
        observations, rewards, terminated, truncated, info = env.step([0, 1, 1])
        np.testing.assert_array_equal(rewards, [0, 1, 1])
        seen.append((terminated.tolist(), truncated.tolist()))
    assert seen == [
        ([False] * 3, [False] * 3),
        ([True, False, False], [False] * 3),
        ([False] * 3, [False] * 3),
        ([True, True, False], [False, True, True]),
    ]
    assert [list(row) for row in info["final_obs"]] == [[0, 2], [0, 4], [5, 4]]
    np.testing.assert_array_equal(info["_final_obs"], [True] * 3)
    np.testing.assert_array_equal(observations, [[2, 0], [4, 0], [9, 0]])


def test_copies_and_episodes_differ_and_a_seed_repeats_them():
    def played(seed):
        env, rows = gymnasium.make_vec("keras_pg/CartPole-v1", 4), []
        rows.append(env.reset(seed=seed)[0])
        for _ in range(100):
            rows.append(env.step(np.zeros(4, int))[0].copy())
        return np.array(rows)

    one, same, other = played(0), played(0), played(1)
    np.testing.assert_array_equal(one, same)
    assert not (one == other).all(axis=-1).any(axis=-1).all()
    first = np.abs(one).max(axis=-1) < 0.05  # of an episode
    assert len(np.unique(one[first], axis=0)) == first.sum() > 30


def test_a_limit_may_be_given_to_make_vec():
    env = gymnasium.make_vec("keras_pg/Pendulum-v1", 2, max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros((2, 1), np.float32))[3].all() for _ in range(6)]
    assert ends == [False, False, True, False, False, True]


def test_agents_take_them_as_any_vector_environment():
    agent = keras_pg.PPO(num_minibatches=2, update_epochs=2, seed=0)
    agent.compile(jit_compile=False)
    env = envs.to_gymnasium(envs.CartPole(), num_envs=4)
    agent.fit(env, num_steps=32, epochs=1, steps_per_epoch=2, verbose=0)
    assert agent.env_steps.numpy() == 256
    assert 5 < agent.evaluate(env, episodes=8, verbose=0)["episode_length"] < 500
    agent.evaluate("keras_pg/CartPole-v1", episodes=2, verbose=0)


def test_the_same_actions_give_the_same_rollouts_as_gymnasiums_own():
    """From copied states, through the whole of an episode, in float32 and in float64."""
    theirs = gymnasium.make("CartPole-v1").unwrapped
    env = envs.CartPole()
    rng = np.random.default_rng(0)
    for seed in range(20):
        observation, _ = theirs.reset(seed=seed)
        state, terminated = tf.constant(observation[None]), False
        while not terminated:
            action = int(rng.integers(2))
            observation, _, terminated, _, _ = theirs.step(action)
            state, _, over = env.step(state, tf.constant([action]), None)
            np.testing.assert_allclose(env.observe(state)[0], observation, rtol=1e-3, atol=1e-4)
            assert bool(over[0]) == terminated


def test_a_collected_rollout_knows_the_states_before_resets():
    env, _ = make_vector_env(envs.to_gymnasium(Countdown(), num_envs=3))
    agent = keras_pg.PPO(seed=0)
    agent.build(env.single_observation_space, env.single_action_space)
    collector = agent._collector(env, num_steps=8)
    assert isinstance(collector, VectorEnvCollector)
    collector.reset(2)
    rollout = collector.collect()
    ended = rollout.terminated | rollout.truncated
    assert ended.sum() >= 6 and rollout.valid.all()
    np.testing.assert_array_equal(
        rollout.next_observations[..., 1], rollout.observations[..., 1] + 1
    )
