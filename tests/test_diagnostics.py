import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from environments import Bandit
from keras_pg.advantages import GAE, GroupRelative, ReturnMinusBaseline
from keras_pg.diagnostics import gradient_statistics, variance_interval
from tabular import TabularEnv, chain, exact_gradient


def tabular_agent(mdp, algorithm=keras_pg.REINFORCE, **settings):
    agent = algorithm(
        keras.Sequential([keras.layers.Identity()]), gamma=mdp.gamma, seed=0, **settings
    )
    env = TabularEnv(mdp)
    agent.build(env.observation_space, env.action_space)
    kernel = agent.actor.head.kernel
    kernel.assign(np.random.default_rng(0).normal(0.0, 0.7, kernel.shape))
    return agent


def test_the_mean_is_the_exact_gradient_and_the_variance_that_of_a_rollout():
    mdp = chain()
    agent = tabular_agent(mdp, advantage="reward_to_go", discount_weighting=True)
    found = [
        gradient_statistics(
            agent, lambda: TabularEnv(mdp), rollouts=200, num_envs=n, num_steps=mdp.steps
        )
        for n in (4, 16)
    ]
    exact = exact_gradient(mdp, agent.actor.head.kernel.numpy().astype(float))
    for statistics in found:
        difference = statistics.mean[: exact.size] - exact.ravel()
        assert difference @ difference < 9 * statistics.variance / 200
    # Four times the episodes, a quarter of the variance and four times the ratio.
    assert 3.0 < found[0].variance / found[1].variance < 5.3
    assert 2.5 < found[1].signal_to_noise / found[0].signal_to_noise < 6.5
    of_four, of_sixteen = (np.array(statistics.variance_interval) for statistics in found)
    assert of_four[0] < found[0].variance < of_four[1]
    assert max(of_four[0], 4 * of_sixteen[0]) < min(of_four[1], 4 * of_sixteen[1])


def test_estimators_are_compared_at_one_policy_and_critic():
    agent = keras_pg.A2C(advantage="advantage", seed=0)
    agent.compile(jit_compile=False)
    agent.fit("CartPole-v1", total_timesteps=3000, num_steps=25, verbose=0)
    before = agent.get_weights()
    variances = {
        name: gradient_statistics(
            agent, "CartPole-v1", advantage=name, rollouts=8, num_envs=4, num_steps=64
        ).variance
        for name in ("reward_to_go", "td", "q", GAE(0.5))
    }
    assert variances["td"] < variances["reward_to_go"]
    for one, other in zip(before, agent.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("own, asked", [("gae", "q"), ("reward_to_go", "td")])
def test_an_estimator_without_its_critic_is_refused(own, asked):
    with pytest.raises(ValueError, match="needs a critic"):
        gradient_statistics(keras_pg.A2C(advantage=own), Bandit, advantage=asked)


def test_episodes_of_reinforce_weigh_alike_however_long():
    """The estimate is that of the agent's own step, whose weights are of episodes, not of steps."""
    agent = keras_pg.REINFORCE(advantage="reward_to_go", seed=0)
    found = gradient_statistics(agent, "CartPole-v1", rollouts=2, num_envs=4, num_steps=100)
    gradients = []
    for k in range(2):
        env = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 4)
        collector = agent._collector(env, 100, whole_episodes=True)
        collector.reset(4 * k)
        rollout = collector.collect(np.random.default_rng([0, k]))
        lengths = rollout.valid.sum(axis=0)
        assert len(set(lengths)) > 1
        with tf.GradientTape() as tape:
            log_probs = agent.actor.action_distribution.log_prob(
                agent.actor(rollout.observations.reshape(-1, 4)), rollout.actions.ravel()
            )
            steps_left = np.maximum(lengths - np.arange(100)[:, None], 0)
            psi = (1 - agent.gamma**steps_left) / (1 - agent.gamma)  # of rewards of 1
            objective = tf.reduce_sum(log_probs * (psi * rollout.valid).ravel()) / 4
        gradients += [tape.gradient(objective, agent.actor.trainable_variables)]
    flat = [np.concatenate([np.ravel(g) for g in gradient]) for gradient in gradients]
    np.testing.assert_allclose(found.mean, np.mean(flat, axis=0), rtol=1e-3, atol=1e-4)


def test_a_running_mean_has_seen_returns_before_it_is_measured():
    mdp = chain()
    agent = tabular_agent(mdp, advantage="reward_to_go", discount_weighting=True)
    baseline = ReturnMinusBaseline("mean")
    plain, with_mean = (
        gradient_statistics(
            agent, lambda: TabularEnv(mdp), advantage=name, rollouts=50, num_steps=mdp.steps
        )
        for name in ("reward_to_go", baseline)
    )
    assert with_mean.variance < 0.95 * plain.variance
    assert float(baseline.layers[0].count) == 0  # the one that was passed in stays as it was


def test_groups_are_measured_by_the_weights_of_their_loss():
    """1 / (N T) for each step; and the mean of the group has the episode's own share, 1 / G."""
    mdp = chain()
    agent = tabular_agent(
        mdp,
        keras_pg.GRPO,
        group_size=4,
        advantage=GroupRelative(scale=None),
        normalization="constant",
    )
    found = gradient_statistics(
        agent, lambda: TabularEnv(mdp), rollouts=200, num_envs=8, num_steps=mdp.steps
    )
    exact = exact_gradient(mdp, agent.actor.head.kernel.numpy().astype(float))
    difference = found.mean[: exact.size] - exact.ravel() * (1 - 1 / 4) / mdp.steps
    assert difference @ difference < 9 * found.variance / 200
    assert found.signal_to_noise > 0


def test_groups_are_asked_only_of_an_agent_that_plays_them():
    with pytest.raises(ValueError, match=r"GroupRelative.*began alike, which A2C does not"):
        gradient_statistics(keras_pg.A2C(), Bandit, advantage="group_relative")
    with pytest.raises(ValueError, match="num_envs=6 is no multiple of group_size=4"):
        gradient_statistics(keras_pg.GRPO(group_size=4), Bandit, num_envs=6)


def test_one_rollout_has_no_variance():
    with pytest.raises(ValueError, match="rollouts=1"):
        gradient_statistics(keras_pg.A2C(), Bandit, rollouts=1)


def test_an_environment_object_stays_open():
    env = gymnasium.vector.SyncVectorEnv([Bandit] * 2)
    gradient_statistics(keras_pg.A2C(seed=0), env, rollouts=2, num_steps=3)
    assert not env.closed


def test_the_interval_is_the_jackknife_of_the_logarithm_written_out():
    estimates = np.random.default_rng(0).normal(3.0, 2.0, (9, 4))
    logs = [np.log(np.delete(estimates, i, 0).var(axis=0, ddof=1).sum()) for i in range(9)]
    error = np.sqrt(8 / 9 * np.sum((logs - np.mean(logs)) ** 2))
    variance = estimates.var(axis=0, ddof=1).sum()
    low, high = variance_interval(estimates)
    t = 2.306004135  # the 0.975 quantile of Student's t with 8 degrees of freedom, from a table
    np.testing.assert_allclose([low, high], variance * np.exp([-t * error, t * error]), rtol=1e-5)
    narrow = variance_interval(estimates, confidence=0.5)
    assert low < narrow[0] < variance < narrow[1] < high


@pytest.mark.parametrize("n, heavy, at_least", [(8, 0.0, 0.9), (64, 0.0, 0.93), (64, 0.5, 0.88)])
def test_the_interval_covers_the_variance_as_often_as_it_says(n, heavy, at_least):
    """Of normal estimates, and of ones whose scale is drawn anew each time: heavy tails."""
    rng, scales = np.random.default_rng(n), 1 / np.arange(1, 11)
    variance = np.sum(scales**2) * np.exp(2 * heavy**2)
    covered = 0
    for _ in range(400):
        factors = np.exp(heavy * rng.normal(size=(n, 1)))
        low, high = variance_interval(5.0 + scales * factors * rng.normal(size=(n, 10)))
        covered += low < variance < high
    assert at_least < covered / 400 < 0.98


def test_what_says_nothing_of_the_spread_has_no_bounds():
    assert variance_interval([[1.0, 2.0], [3.0, 4.0]]) == (0.0, np.inf)
    assert variance_interval([[1.0], [1.0], [1.0], [7.0]]) == (0.0, np.inf)
    assert variance_interval(np.ones((5, 3))) == (0.0, 0.0)


@pytest.mark.parametrize(
    "estimates, confidence, words",
    [
        (np.ones((1, 3)), 0.95, r"n of at least 2, received an array of shape \[1, 3\]"),
        (np.ones(3), 0.95, r"received an array of shape \[3\]"),
        (np.ones((4, 3)), 95, "confidence must be between 0 and 1, received 95"),
    ],
)
def test_an_interval_of_nothing_is_refused(estimates, confidence, words):
    with pytest.raises(ValueError, match=words):
        variance_interval(estimates, confidence)
