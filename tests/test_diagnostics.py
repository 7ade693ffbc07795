import gymnasium
import keras
import numpy as np
import pytest

import keras_pg
from environments import Bandit
from keras_pg.advantages import GAE
from keras_pg.diagnostics import gradient_statistics
from tabular import TabularEnv, chain, exact_gradient


def tabular_agent(mdp, **settings):
    agent = keras_pg.REINFORCE(
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
    exact = exact_gradient(mdp, agent.actor.head.kernel.numpy().astype(float)) / mdp.steps
    for statistics in found:
        difference = statistics.mean[: exact.size] - exact.ravel()
        assert difference @ difference < 9 * statistics.variance / 200
    # Four times the episodes, a quarter of the variance and four times the ratio.
    assert 3.0 < found[0].variance / found[1].variance < 5.3
    assert 2.5 < found[1].signal_to_noise / found[0].signal_to_noise < 6.5


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


def test_one_rollout_has_no_variance():
    with pytest.raises(ValueError, match="rollouts=1"):
        gradient_statistics(keras_pg.A2C(), Bandit, rollouts=1)


def test_an_environment_object_stays_open():
    env = gymnasium.vector.SyncVectorEnv([Bandit] * 2)
    gradient_statistics(keras_pg.A2C(seed=0), env, rollouts=2, num_steps=3)
    assert not env.closed
