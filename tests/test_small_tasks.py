"""The native tasks whose answers are known."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg import envs
from keras_pg.advantages import GAE, Evaluated, ReturnMinusBaseline, RewardToGo
from keras_pg.envs.native_env import Copies
from keras_pg.rollouts import collector_for
from tabular import MDP, episode_gradients, exact_gradient, values_of


def seeds(n, call=0):
    return tf.stack([tf.range(n, dtype=tf.int64), tf.fill([n], tf.constant(call, tf.int64))], -1)


def test_what_a_bandits_arms_are_worth():
    env, n = envs.ContextualBandit(), 20_000
    state = env.reset(seeds(n))
    paid = np.stack(
        [env.step(state, tf.fill([n], tf.constant(a, tf.int64)), None)[1] for a in range(5)]
    )
    shown = state.numpy()
    assert abs(paid.max(axis=0).mean() - 0.829) < 0.01
    assert abs(paid[shown.argmax(axis=1), np.arange(n)].mean() - 0.767) < 0.01
    assert abs(paid.mean() - 0.1) < 0.01
    np.testing.assert_allclose(paid.T - shown, [[0.5, 0, 0, 0, 0]] * n, atol=1e-6)


@pytest.mark.slow
def test_grpo_learns_the_bandit_from_groups_in_one_program():
    agent = keras_pg.GRPO(group_size=8, seed=0)
    agent.compile(keras.optimizers.Adam(3e-3), steps_per_execution=10)
    env = envs.ContextualBandit()
    agent.fit(env, num_envs=512, num_steps=1, epochs=10, steps_per_epoch=20, verbose=0)
    assert agent.evaluate(env, episodes=2000, num_envs=500, verbose=0)["episode_return"] > 0.78


@pytest.mark.parametrize(("size", "slip"), [(2, 0.0), (3, 0.5), (4, 0.1)])
def test_a_gridworlds_model_is_what_it_does(size, slip):
    env, n = envs.Gridworld(size, slip), 4000
    transitions, rewards = env.model()
    np.testing.assert_allclose(transitions.sum(axis=-1), 1.0)
    for field in range(size**2 - 1):
        for action in range(4):
            state = tf.fill([n], tf.constant(field, tf.int64))
            actions = tf.fill([n], tf.constant(action, tf.int64))
            after, paid, over = env.step(state, actions, seeds(n, 7 * field + action))
            share = np.bincount(after, minlength=size**2) / n
            np.testing.assert_allclose(share, transitions[field, action], atol=0.03)
            assert abs(np.mean(paid) - rewards[field, action]) < 0.03
            np.testing.assert_array_equal(over, after == size**2 - 1)


@pytest.mark.parametrize(
    "estimator", [RewardToGo(), ReturnMinusBaseline(), GAE(0.8)], ids=lambda e: type(e).__name__
)
def test_the_gradient_of_rollouts_of_a_gridworld_is_the_exact_one(estimator):
    """Collected in the graph, by an actor whose logits are a table."""
    env, gamma, steps, episodes = envs.Gridworld(3, 0.2), 0.9, 80, 4000
    env.max_episode_steps = None
    agent = keras_pg.REINFORCE(
        actor=keras.Sequential([keras.layers.Identity()]), gamma=gamma, seed=0
    )
    agent.build(env.observation_space, env.action_space)
    logits = np.random.default_rng(0).normal(size=(9, 4))
    agent.actor.head.set_weights([logits, np.zeros(4)])
    collector = collector_for(
        Copies(env, episodes), agent.actor, num_steps=steps, gamma=gamma, whole_episodes=True
    )
    collector.reset(0)
    rollout = collector.collect(np.random.default_rng(0))
    transitions, rewards = env.model()
    mdp = MDP(transitions, rewards, np.eye(9)[0], gamma, steps, terminal=True)
    values = values_of(mdp, logits)[0][0]
    evaluated = Evaluated(
        rollout.observations,
        rollout.rewards.astype(float),
        values[rollout.observations],
        values[rollout.next_observations],
        None,
        rollout.terminated,
        rollout.truncated,
        rollout.valid,
        rollout.timesteps,
        gamma,
        0.95,
    )
    psi = np.asarray(estimator.discounted(evaluated))
    samples = episode_gradients(logits, rollout.observations, rollout.actions, psi, rollout.valid)
    error = samples.mean(axis=0) - exact_gradient(mdp, logits).ravel()
    deviation = samples.std(axis=0) / np.sqrt(episodes)
    moving = deviation > 1e-9
    assert np.abs(error[~moving]).max(initial=0) < 1e-6
    # χ² of some 30 coordinates, most of them independent.
    assert np.mean((error[moving] / deviation[moving]) ** 2) < 2.0


def walk(env, actions, n=64):
    """(observations of each step, returns, whether over) of one sequence of actions."""
    state = env.reset(seeds(n))
    seen, total = [env.observe(state)], np.zeros(n)
    for action in actions:
        chosen = tf.fill([n], tf.constant(action, tf.int64))
        state, rewards, over = env.step(state, chosen, None)
        seen.append(env.observe(state))
        total += rewards
    return np.array(seen), total, over.numpy()


def test_a_t_maze_shows_its_side_only_once_and_pays_for_remembering_it():
    env = envs.TMaze(3)
    observations, total, over = walk(env, [1, 1, 1, 0])
    up = observations[0, :, 0] == 0
    assert 0.3 < up.mean() < 0.7 and over.all()
    np.testing.assert_allclose(total, np.where(up, 4.0, -0.1), rtol=1e-5)
    for observation, expected in zip(observations[1:4], ["101", "101", "010"], strict=True):
        np.testing.assert_array_equal(observation, [[float(x) for x in expected]] * 64)
    _, total, over = walk(env, [0, 3, 1, 2, 1, 1, 1, 2])
    assert over.all()  # bumped into four walls on the way, the last at the junction's end
    np.testing.assert_allclose(total, np.where(up, -0.1, 4.0) - 0.4, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: envs.ContextualBandit(0), "arms must be"),
        (lambda: envs.Gridworld(1), "size must be at least 2"),
        (lambda: envs.Gridworld(3, 1.5), "slip must be"),
        (lambda: envs.TMaze(0), "length must be"),
    ],
)
def test_impossible_tasks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_they_have_ids():
    for name in ("ContextualBandit-v0", "Gridworld-v0", "TMaze-v0"):
        env = gymnasium.make(f"keras_pg/{name}")
        env.reset(seed=0)
        assert env.observation_space.contains(env.step(env.action_space.sample())[0])
