"""Every Ψ against the exact policy gradient of small MDPs.

An estimate is the mean over many episodes, and it is compared in all its coordinates at once: the
squared distance to the exact gradient in units of the standard error (Hotelling's T²) stays below
the quantile of χ² that corresponds to three standard errors of a single number.
"""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from keras_pg.advantages import (
    GAE,
    ActionAdvantage,
    ActionValue,
    GroupRelative,
    NStep,
    ReturnMinusBaseline,
    RewardToGo,
    TDResidual,
    TotalReturn,
)
from tabular import (
    MDPS,
    episode_gradients,
    exact_gradient,
    objective,
    play,
    policy_of,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "algorithms" / "README.md"
EPISODES = 20_000


def with_running_mean(mean):
    """A baseline that has seen returns of this mean."""
    estimator = ReturnMinusBaseline("mean")
    estimator.layers[0].merge(np.full((10,), mean), np.ones(10, bool))
    return estimator


ESTIMATORS = {
    "total return": TotalReturn(),
    "reward to go": RewardToGo(),
    "return minus V": ReturnMinusBaseline("value"),
    "return minus a function": ReturnMinusBaseline(
        lambda states: 0.5 * tf.cast(states, tf.float64)
    ),
    "return minus a running mean": with_running_mean(0.7),
    "TD": TDResidual(),
    "3 steps": NStep(3),
    "GAE": GAE(0.7),
    "Q": ActionValue(),
    "Q - V": ActionAdvantage(),
    "a sum": 0.3 * TotalReturn() + 0.5 * GAE(0.9) + 0.2 * ActionAdvantage(),
}


def distance(samples, expected):
    """(T² of the mean of `samples` [N, D] from `expected`, its three-sigma bound).

    Scores of a softmax sum to 0 in each state, so their covariance has no full rank.
    """
    mean, covariance = samples.mean(0), np.cov(samples.T) / len(samples)
    rank = np.linalg.matrix_rank(covariance, tol=1e-9 * np.abs(covariance).max())
    difference = mean - expected.ravel()
    bound = tfp.distributions.Chi2(np.float64(rank)).quantile(np.float64(0.9973))
    return difference @ np.linalg.pinv(covariance, rcond=1e-9) @ difference, float(bound)


@pytest.fixture(scope="module", params=MDPS)
def played(request):
    mdp = MDPS[request.param]()
    logits = policy_of(mdp)
    return mdp, logits, *play(mdp, logits, EPISODES)


def test_the_exact_gradient_is_that_of_the_objective(played):
    mdp, logits, *_ = played
    numerical = np.zeros_like(logits)
    for index in np.ndindex(logits.shape):
        shift = np.zeros_like(logits)
        shift[index] = 1e-5
        numerical[index] = (objective(mdp, logits + shift) - objective(mdp, logits - shift)) / 2e-5
    # An MDP without a horizon is summed over 60 steps only.
    np.testing.assert_allclose(exact_gradient(mdp, logits), numerical, atol=3e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_gives_the_policy_gradient(played, name):
    mdp, logits, states, actions, evaluated = played
    psi = ESTIMATORS[name].discounted(evaluated).numpy()
    samples = episode_gradients(logits, states, actions, psi, evaluated.valid)
    found, bound = distance(samples, exact_gradient(mdp, logits))
    assert found < bound


@pytest.mark.parametrize("group_size", [2, 8])
def test_the_groups_mean_as_baseline_gives_the_policy_gradient_but_for_its_own_share(
    played, group_size
):
    """Of the mean, 1 / G is the episode itself: E[(R_i - mean) ∇log π] = (1 - 1 / G) ∇J."""
    mdp, logits, states, actions, evaluated = played
    psi = GroupRelative(scale=None)(evaluated._replace(group_size=group_size)).numpy()
    samples = episode_gradients(logits, states, actions, psi, evaluated.valid)
    # A group's episodes share their mean: the group is the sample.
    groups = samples.reshape(-1, group_size, samples.shape[-1]).mean(axis=1)
    found, bound = distance(group_size / (group_size - 1) * groups, exact_gradient(mdp, logits))
    assert found < bound
    found, bound = distance(groups, exact_gradient(mdp, logits))
    assert found > bound


# Not the returns: those of late steps are cut where an MDP without a horizon is no longer played.
# The chain has one, see below.
@pytest.mark.parametrize("name", ["TD", "GAE", "Q - V"])
def test_without_discount_weighting_it_is_the_gradient_with_undiscounted_states(played, name):
    mdp, logits, states, actions, evaluated = played
    psi = ESTIMATORS[name](evaluated).numpy()
    samples = episode_gradients(logits, states, actions, psi, evaluated.valid)
    found, bound = distance(samples, exact_gradient(mdp, logits, discount_weighting=False))
    assert found < bound
    found, bound = distance(samples, exact_gradient(mdp, logits))
    assert found > 10 * bound


@pytest.mark.parametrize("name", ["reward to go", "return minus V", "return minus a function"])
@pytest.mark.parametrize("played", ["chain"], indirect=True)
def test_so_it_is_of_returns_where_episodes_have_a_horizon(played, name):
    test_without_discount_weighting_it_is_the_gradient_with_undiscounted_states(played, name)


def test_the_variances_are_those_of_the_page(played, request):
    """Relative to that of the total return; two digits, of episodes that have a seed."""
    _, logits, states, actions, evaluated = played
    variances = {}
    for name, estimator in ESTIMATORS.items():
        psi = estimator.discounted(evaluated).numpy()
        samples = episode_gradients(logits, states, actions, psi, evaluated.valid)
        variances[name] = samples.var(0).sum()
    found = [f"{v / variances['total return']:.2g}" for v in variances.values()]
    table = PAGE.read_text().partition("Variance of the estimate from one episode")[2]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in row] for row in rows[: 1 + len(found)]]
    column = header.index(request.node.callspec.params["played"])
    assert [(row[0], row[column]) for row in rows] == list(zip(variances, found))


def test_variance_falls_from_total_return_to_reward_to_go_to_baseline_to_gae(played):
    _, logits, states, actions, evaluated = played
    variances = []
    for name in ("total return", "reward to go", "return minus V", "GAE"):
        psi = ESTIMATORS[name].discounted(evaluated).numpy()
        samples = episode_gradients(logits, states, actions, psi, evaluated.valid)
        variances.append(samples.var(0).sum())
    assert variances == sorted(variances, reverse=True)
    # By more than chance: a variance of 20,000 samples has a standard error of a few per cent.
    assert np.all(np.array(variances[1:]) < 0.97 * np.array(variances[:-1]))
