"""Facts about the action distributions.

Statistical tests draw a fixed number of samples from a fixed seed and allow 3 standard errors,
estimated from the samples themselves. Closed forms are compared with NumPy in float64: float32
keeps 7 digits, of which a sum of a few terms of order 10 may lose one or two.
"""

import re

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from keras_pg.distributions import (
    LOG_STD_RANGE,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    StateDependentGaussian,
    for_action_space,
)

SAMPLES = 100_000
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}

LOW, HIGH = np.float32([-3, 0.1, -1, 5]), np.float32([7, 0.5, 1, 100])
BOX = Box(LOW, HIGH)

# A distribution and two parameter rows far enough apart to tell KL(p ‖ q) from KL(q ‖ p).
CASES = {
    "categorical": (
        Categorical(Discrete(5, start=-2)),
        [0.0, 1.0, -1.0, 2.0, 0.5],
        [1.0, 0.0, 0.0, -1.0, 0.5],
    ),
    "multicategorical": (
        MultiCategorical(MultiDiscrete([2, 3], start=[4, -1])),
        [0.0, 1.0, -1.0, 2.0, 0.5],
        [0.0, 4.0, 0.0, -1.0, 0.5],
    ),
    "bernoulli": (
        Bernoulli(MultiBinary(4)),
        [0.0, 1.0, -1.0, 2.0],
        [1.0, 0.5, 1.0, -1.0],
    ),
    "gaussian": (
        DiagonalGaussian(BOX),
        [0.0, 1.0, -2.0, 0.5, -1.0, 0.0, 0.5, -0.3],
        [0.2, 1.3, -2.0, 0.0, -0.5, -0.2, 0.9, -0.5],
    ),
    "squashed": (
        SquashedGaussian(BOX),
        [0.0, 1.0, -0.5, 0.5, -1.0, 0.0, 0.5, -0.3],
        [0.2, 1.3, -0.5, 0.0, -0.5, -0.2, 0.9, -0.5],
    ),
}
# Of 3 features, whose shares in the deviation of each action have squares of sum 1.
SHARES = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0][:, :3].T
SHARES = (SHARES / np.linalg.norm(SHARES, axis=0)).ravel().tolist()
CASES["state-dependent"] = (
    StateDependentGaussian(BOX, features=3, held_steps=1),
    CASES["gaussian"][1] + SHARES,
    CASES["gaussian"][2] + SHARES[::-1],
)
DISCRETE_CASES = ["categorical", "multicategorical", "bernoulli"]
every_distribution = pytest.mark.parametrize("case", CASES)
discrete_distributions = pytest.mark.parametrize("case", DISCRETE_CASES)
both_gaussians = pytest.mark.parametrize("kind", [DiagonalGaussian, SquashedGaussian])


def rows(parameters, count=1):
    """`count` equal parameter rows, float32 [count, P]."""
    return tf.tile(tf.constant([parameters], tf.float32), [count, 1])


def seeds(count, seed=0):
    """A seed a row, [count, 2]."""
    return np.stack([np.arange(count), np.full(count, seed)], axis=-1)


def samples_of(distribution, parameters, seed=0):
    """The parameters [SAMPLES, P] and as many raw actions."""
    parameters = rows(parameters, SAMPLES)
    noise = distribution.draw_noise(np.random.default_rng(seed), (SAMPLES,))
    return parameters, distribution.sample(parameters, noise)


def assert_mean_within_three_standard_errors(draws, expected):
    draws = np.asarray(draws, np.float64)
    standard_error = draws.std() / np.sqrt(len(draws))
    assert standard_error > 0
    assert abs(draws.mean() - expected) < 3 * standard_error


# Hand formulas, float64.


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def components(case, parameters):
    """The log-probabilities of each component of a discrete distribution, log-softmaxes."""
    logits = np.asarray(parameters, np.float64)
    parts = {
        "categorical": [logits],
        "multicategorical": [logits[:2], logits[2:]],
        "bernoulli": [np.array([0.0, logit]) for logit in logits],
    }[case]
    return [log_softmax(part) for part in parts]


def gaussian_log_prob(parameters, actions):
    mean, log_std = np.split(np.asarray(parameters, np.float64), 2, axis=-1)
    z = (actions - mean) / np.exp(log_std)
    return np.sum(-(z**2) / 2 - log_std - np.log(2 * np.pi) / 2, axis=-1)


def log_slope(u, low=LOW, high=HIGH):
    """Log |da/du| of a = centre + half_width tanh(u)."""
    half_width = (np.asarray(high, np.float64) - low) / 2
    return np.log(half_width) + 2 * (np.log(2) - np.abs(u) - np.log1p(np.exp(-2 * np.abs(u))))


CENTRE, HALF_WIDTH = (HIGH.astype(np.float64) + LOW) / 2, (HIGH.astype(np.float64) - LOW) / 2


def gaussian_kl(p, q):
    mean_p, log_std_p = np.split(np.asarray(p[:8], np.float64), 2)
    mean_q, log_std_q = np.split(np.asarray(q[:8], np.float64), 2)
    square = np.exp(2 * log_std_p) + (mean_p - mean_q) ** 2
    return np.sum(log_std_q - log_std_p + square / (2 * np.exp(2 * log_std_q)) - 0.5)


# ------------------------------------------------------------- entropy, KL and log-probability


@every_distribution
def test_entropy_is_minus_the_mean_log_prob_of_samples(case):
    distribution, p, _ = CASES[case]
    parameters, actions = samples_of(distribution, p)
    entropy = float(distribution.entropy(rows(p))[0])
    assert_mean_within_three_standard_errors(-distribution.log_prob(parameters, actions), entropy)


@every_distribution
def test_kl_is_the_mean_log_ratio_over_samples_of_p(case):
    distribution, p, q = CASES[case]
    parameters, actions = samples_of(distribution, p)
    log_ratio = distribution.log_prob(parameters, actions) - distribution.log_prob(
        rows(q, SAMPLES), actions
    )
    kl = float(distribution.kl_divergence(p=rows(p), q=rows(q))[0])
    assert_mean_within_three_standard_errors(log_ratio, kl)


@every_distribution
def test_kl_equals_the_formula_in_the_named_direction(case):
    distribution, p, q = CASES[case]
    if case in DISCRETE_CASES:
        pairs = list(zip(components(case, p), components(case, q)))
        forward = sum(np.sum(np.exp(a) * (a - b)) for a, b in pairs)
        backward = sum(np.sum(np.exp(b) * (b - a)) for a, b in pairs)
    else:
        # A bijection leaves the KL as it is: squashing changes nothing.
        forward, backward = gaussian_kl(p, q), gaussian_kl(q, p)
    assert abs(forward - backward) > 0.1
    kl = distribution.kl_divergence
    np.testing.assert_allclose(kl(p=rows(p), q=rows(q)), [forward], **FLOAT32)
    np.testing.assert_allclose(kl(p=rows(q), q=rows(p)), [backward], **FLOAT32)


@every_distribution
def test_kl_must_be_called_by_name(case):
    distribution, p, q = CASES[case]
    with pytest.raises(TypeError):
        distribution.kl_divergence(rows(p), rows(q))


@every_distribution
def test_kl_from_a_policy_to_itself_is_zero_and_flat(case):
    distribution, p, _ = CASES[case]
    parameters = rows(p)
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        kl = distribution.kl_divergence(p=rows(p), q=parameters)
    np.testing.assert_allclose(kl, [0.0], atol=1e-6)
    np.testing.assert_allclose(tape.gradient(kl, parameters), [np.zeros(len(p))], atol=1e-6)


@every_distribution
def test_there_is_one_number_a_state(case):
    distribution, p, q = CASES[case]
    parameters = rows(p, 3)
    actions = distribution.sample(parameters, distribution.stateless_noise(seeds(3)))
    assert actions.shape == (3, *distribution.action_shape)
    assert actions.dtype == distribution.action_dtype
    assert distribution.log_prob(parameters, actions).shape == (3,)
    assert distribution.entropy(parameters).shape == (3,)
    assert distribution.kl_divergence(p=parameters, q=rows(q, 3)).shape == (3,)
    assert parameters.shape[-1] == distribution.parameter_size


@both_gaussians
def test_equal_dimensions_add_up(kind):
    one, four = kind(Box(-3, 7, (1,))), kind(Box(-3, 7, (4,)))
    (p1, p4), (q1, q4) = (
        (rows([mean, log_std]), rows([mean] * 4 + [log_std] * 4))
        for mean, log_std in ((0.3, -0.7), (-0.4, 0.2))
    )
    action = tf.constant([[0.9]])
    pairs = [
        (one.kl_divergence(p=p1, q=q1), four.kl_divergence(p=p4, q=q4)),
        (one.entropy(p1), four.entropy(p4)),
        (one.log_prob(p1, action), four.log_prob(p4, tf.tile(action, [1, 4]))),
    ]
    for in_one_dimension, in_four in pairs:
        np.testing.assert_allclose(in_four, 4 * in_one_dimension, **FLOAT32)


def all_actions(case):
    """Every raw action [A, ...] of a discrete distribution."""
    counts = [len(part) for part in components(case, CASES[case][1])]
    actions = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1)
    actions = actions.reshape(-1, len(counts))
    return actions[:, 0] if case == "categorical" else actions


@discrete_distributions
def test_discrete_log_prob_and_entropy_equal_the_formula(case):
    distribution, p, _ = CASES[case]
    parts, actions = components(case, p), all_actions(case)
    indices = actions.reshape(len(actions), -1)
    expected = [sum(part[i] for part, i in zip(parts, row, strict=True)) for row in indices]
    np.testing.assert_allclose(np.sum(np.exp(expected)), 1.0)
    np.testing.assert_allclose(
        distribution.log_prob(rows(p, len(actions)), actions), expected, **FLOAT32
    )
    entropy = -np.sum(np.exp(expected) * expected)
    np.testing.assert_allclose(distribution.entropy(rows(p)), [entropy], **FLOAT32)


@every_distribution
def test_the_tfp_distribution_scores_alike(case):
    distribution, p, _ = CASES[case]
    parameters, actions = samples_of(distribution, p)
    parameters, actions = parameters[:50], actions[:50]
    expected = distribution.distribution(parameters).log_prob(
        tf.cast(actions, tf.float32) if case == "bernoulli" else actions
    )
    if case == "squashed":
        expected -= np.sum(log_slope(actions.numpy().astype(np.float64)), axis=-1)
    if case in ("gaussian", "state-dependent"):
        expected -= np.sum(np.log(HALF_WIDTH))  # scored is what the environment gets, unclipped
    np.testing.assert_allclose(distribution.log_prob(parameters, actions), expected, **FLOAT32)


@pytest.mark.parametrize("case", ["gaussian", "squashed"])
def test_gaussian_log_prob_equals_the_formula(case):
    distribution, p, _ = CASES[case]
    actions = np.random.default_rng(0).normal(0, 1.5, (50, 4)).astype(np.float32)
    expected = gaussian_log_prob(p, actions)
    if case == "squashed":
        expected = expected - np.sum(log_slope(actions.astype(np.float64)), axis=-1)
    else:
        expected = expected - np.sum(np.log(HALF_WIDTH))
    # The largest of these are of order 100.
    np.testing.assert_allclose(distribution.log_prob(rows(p, 50), actions), expected, **FLOAT32)


def test_gaussian_entropy_equals_the_formula():
    distribution, p, _ = CASES["gaussian"]
    expected = np.sum(p[4:] + np.log(HALF_WIDTH)) + 4 * np.log(2 * np.pi * np.e) / 2
    np.testing.assert_allclose(distribution.entropy(rows(p)), [expected], **FLOAT32)


@discrete_distributions
def test_the_mean_score_is_zero_and_its_covariance_the_fisher_matrix(case):
    distribution, p, _ = CASES[case]
    actions = all_actions(case)
    parameters = rows(p, len(actions))
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        log_probs = distribution.log_prob(parameters, actions)
    scores = tape.gradient(log_probs, parameters).numpy()
    probabilities = np.exp(np.float64(log_probs))
    np.testing.assert_allclose(probabilities @ scores, np.zeros(len(p)), atol=1e-6)
    covariance = np.einsum("a,ai,aj->ij", probabilities, scores, scores)
    products = distribution.fisher_product(rows(p, len(p)), np.eye(len(p), dtype=np.float32))
    np.testing.assert_allclose(products, covariance, atol=1e-6)


@pytest.mark.parametrize("case", ["categorical", "multicategorical"])
def test_an_impossible_action_leaves_everything_finite(case):
    """A logit of -∞ is a probability of 0, whose share of the entropy is 0."""
    distribution, _, _ = CASES[case]
    parameters = rows([0.0, -np.inf, 1.0, -np.inf, 0.5])
    action = np.array({"categorical": [2], "multicategorical": [[0, 2]]}[case])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(parameters)
        values = {
            "log_prob": distribution.log_prob(parameters, action),
            "entropy": (entropy := distribution.entropy(parameters)),
            "kl": distribution.kl_divergence(p=parameters, q=2.0 * parameters),
        }
    for name, value in values.items():
        gradient = tape.gradient(value, parameters)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient)), name
        np.testing.assert_array_equal(gradient.numpy()[~np.isfinite(parameters)], 0.0)
    possible = log_softmax([0.0, 1.0, 0.5] if case == "categorical" else [1.0, 0.5])
    np.testing.assert_allclose(entropy, [-np.sum(np.exp(possible) * possible)], **FLOAT32)


# --------------------------------------------------------------------------- noise and samples


@every_distribution
def test_zero_noise_gives_the_mode(case):
    distribution, p, q = CASES[case]
    parameters = tf.concat([rows(p), rows(q)], 0)
    zero = np.zeros((2, distribution.noise_size), np.float32)
    np.testing.assert_array_equal(
        distribution.sample(parameters, zero), distribution.mode(parameters)
    )


@discrete_distributions
def test_the_mode_is_the_most_probable_action(case):
    distribution, p, q = CASES[case]
    actions = all_actions(case)
    for parameters in (p, q):
        best = np.argmax(distribution.log_prob(rows(parameters, len(actions)), actions))
        np.testing.assert_array_equal(distribution.mode(rows(parameters))[0], actions[best])


def test_the_mode_of_a_categorical_is_the_first_of_equals():
    distribution, _, _ = CASES["categorical"]
    assert distribution.mode(rows([1.0, 2.0, 2.0, 0.0, 2.0])).numpy().tolist() == [1]


@discrete_distributions
@pytest.mark.parametrize("source", ["draw_noise", "stateless_noise"])
def test_sampled_actions_are_as_frequent_as_they_are_probable(case, source):
    distribution, p, _ = CASES[case]
    if source == "draw_noise":
        noise = distribution.draw_noise(np.random.default_rng(1), (SAMPLES,))
    else:
        noise = distribution.stateless_noise(seeds(SAMPLES))
    sampled = distribution.sample(rows(p, SAMPLES), noise).numpy().reshape(SAMPLES, -1)
    actions = all_actions(case)
    probabilities = np.exp(distribution.log_prob(rows(p, len(actions)), actions))
    each = [np.all(sampled == action, axis=-1) for action in actions.reshape(len(actions), -1)]
    counts = np.sum(each, axis=-1)
    assert counts.sum() == SAMPLES
    standard_deviations = np.sqrt(SAMPLES * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - SAMPLES * probabilities) < 3 * standard_deviations)


@pytest.mark.parametrize("source", ["draw_noise", "stateless_noise"])
@pytest.mark.parametrize(
    ("distribution", "mean", "variance", "kurtosis"),
    [
        (DiagonalGaussian(Box(-1, 1, (4,))), 0.0, 1.0, 3.0),
        (Categorical(Discrete(4)), np.euler_gamma, np.pi**2 / 6, 5.4),
        (Bernoulli(MultiBinary(4)), 0.0, np.pi**2 / 3, 4.2),
    ],
    ids=["normal", "gumbel", "logistic"],
)
def test_noise_is_standard(distribution, mean, variance, kurtosis, source):
    if source == "draw_noise":
        noise = distribution.draw_noise(np.random.default_rng(0), (SAMPLES,))
    else:
        noise = distribution.stateless_noise(seeds(SAMPLES)).numpy()
    assert noise.shape == (SAMPLES, 4) and noise.dtype == np.float32
    draws = noise.astype(np.float64)
    # Var[sample mean] = σ²/n; Var[sample variance] = σ⁴ (kurtosis - 1)/n. One test a column.
    mean_error = np.sqrt(variance / SAMPLES)
    variance_error = variance * np.sqrt((kurtosis - 1) / SAMPLES)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 3 * mean_error)
    assert np.all(np.abs(draws.var(axis=0) - variance) < 3 * variance_error)
    # Columns are independent: their correlation is 0 with standard error 1/√n.
    correlations = np.corrcoef(draws.T)[np.triu_indices(4, 1)]
    assert np.all(np.abs(correlations) < 3 / np.sqrt(SAMPLES))


@every_distribution
def test_noise_is_reproduced_by_its_seed(case):
    distribution, _, _ = CASES[case]
    one, same, other = (distribution.stateless_noise(seeds(7, seed)).numpy() for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)
    one, same, other = (
        distribution.draw_noise(np.random.default_rng(seed), (2, 3)) for seed in (0, 0, 1)
    )
    assert one.shape == (2, 3, distribution.noise_size)
    np.testing.assert_array_equal(one, same)
    assert np.all(one != other)


def test_gumbel_noise_is_finite():
    # NumPy's float32 exponential is exactly 0 about once in 7 million draws; with this seed, here.
    noise = Categorical(Discrete(4)).draw_noise(np.random.default_rng(33), (2**17,))
    assert np.all(np.isfinite(noise))


# ------------------------------------------------------------------------------------ squashing


@pytest.mark.parametrize(("low", "high"), [(-3.0, 7.0), (0.1, 0.5), (-1.0, 1.0)])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.0, 0.3)])
def test_the_squashed_density_integrates_to_one(low, high, mean, std):
    distribution = SquashedGaussian(Box(low, high, (1,)))
    # Midpoints of 20,000 intervals: the rule's error is of order 1e-8, that of float32 1e-5.
    fractions = (np.arange(20_000) + 0.5) / 20_000
    u = np.arctanh(2 * fractions - 1)[:, None].astype(np.float32)
    np.testing.assert_allclose(
        distribution.to_env(u)[:, 0], low + (high - low) * fractions, rtol=1e-5, atol=1e-5
    )
    log_probs = distribution.log_prob(rows([mean, np.log(std)], 20_000), u)
    integral = np.mean(np.exp(np.float64(log_probs))) * (high - low)
    np.testing.assert_allclose(integral, 1.0, atol=1e-5)


@pytest.mark.parametrize("u", [20.0, -20.0])
def test_the_squashed_log_prob_is_finite_far_out_and_so_is_its_gradient(u):
    distribution, p, _ = CASES["squashed"]
    parameters, actions = rows(p), tf.fill([1, 4], u)
    with tf.GradientTape() as tape:
        tape.watch([parameters, actions])
        log_prob = distribution.log_prob(parameters, actions)
    expected = gaussian_log_prob(p, actions.numpy()) - np.sum(log_slope(np.full(4, u)))
    # Of order 1e3.
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    for gradient in tape.gradient(log_prob, [parameters, actions]):
        assert np.all(np.isfinite(gradient)) and np.all(gradient.numpy() != 0)


def test_the_squashed_log_prob_is_that_of_tensorflow_probability():
    distribution, p, _ = CASES["squashed"]
    u = np.random.default_rng(0).uniform(-2.5, 2.5, (50, 4)).astype(np.float32)
    low, high = LOW.astype(np.float64), HIGH.astype(np.float64)
    tfb = tfp.bijectors
    reference = tfp.distributions.TransformedDistribution(
        tfp.distributions.MultivariateNormalDiag(
            np.array(p[:4], np.float64), np.exp(np.array(p[4:], np.float64))
        ),
        tfb.Chain([tfb.Shift((high + low) / 2), tfb.Scale((high - low) / 2), tfb.Tanh()]),
    )
    actions = (high + low) / 2 + (high - low) / 2 * np.tanh(u.astype(np.float64))
    np.testing.assert_allclose(
        distribution.log_prob(rows(p, 50), u), reference.log_prob(actions), **FLOAT32
    )


@pytest.mark.parametrize("std", [1e-3, 0.05, 0.2, 0.49, 0.51, 0.7, 1.5, 3.0, np.exp(2.0)])
@pytest.mark.parametrize("mean", [0.0, -1.5, 6.0])
def test_the_squashed_entropy_is_right_for_narrow_and_wide_gaussians(std, mean):
    distribution = SquashedGaussian(Box(-3.0, 7.0, (1,)))
    p = [mean, np.log(std)]
    entropy = float(distribution.entropy(rows(p))[0])
    parameters, actions = samples_of(distribution, p)
    assert_mean_within_three_standard_errors(-distribution.log_prob(parameters, actions), entropy)
    # The trapezoid rule on 0.001 steps is exact to float64 for such smooth, vanishing integrands.
    x = np.arange(-12, 12, 0.001)
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    exact = np.log(std) + np.log(2 * np.pi * np.e) / 2
    exact += np.sum(weights * log_slope(mean + std * x, -3.0, 7.0))
    # Float32 itself: terms of order 10 are rounded to 1e-6.
    np.testing.assert_allclose(entropy, exact, atol=1e-5)


def test_the_gradient_of_the_squashed_entropy_is_that_of_the_integral():
    distribution = SquashedGaussian(Box(-1.0, 1.0, (1,)))
    x = np.arange(-12, 12, 0.001)
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    for mean, log_std in [(0.4, -0.8), (0.4, -0.6), (-2.0, 1.9), (0.1, -19.0)]:
        parameters = rows([mean, log_std])
        with tf.GradientTape() as tape:
            tape.watch(parameters)
            entropy = distribution.entropy(parameters)
        slopes = -2 * np.tanh(mean + np.exp(log_std) * x)
        exact = [np.sum(weights * slopes), 1 + np.sum(weights * slopes * x) * np.exp(log_std)]
        np.testing.assert_allclose(tape.gradient(entropy, parameters)[0], exact, atol=1e-5)


def test_squashing_reaches_both_bounds_and_its_centre():
    distribution = SquashedGaussian(BOX)
    actions = tf.constant([[-1e3] * 4, [0.0] * 4, [1e3] * 4])
    np.testing.assert_allclose(
        distribution.to_env(actions), [LOW, (LOW + HIGH) / 2, HIGH], rtol=1e-6
    )


@pytest.mark.parametrize(
    "space",
    [
        Box(np.float32([-1, 2]), np.float32([1, 2])),
        Box(-1e300, 1e300, (2,), np.float64),
    ],
    ids=["zero width", "too wide for float32"],
)
def test_squashing_refuses_bounds_on_which_it_has_no_density(space):
    with pytest.raises(ValueError, match=re.escape(str(space))):
        for_action_space(space, squash=True)


# -------------------------------------------------------------------------- env-ready actions


def test_categorical_actions_start_where_the_space_does():
    space = Discrete(5, start=-2)
    actions = for_action_space(space).to_env(tf.range(5, dtype=tf.int64))
    assert actions.numpy().tolist() == [-2, -1, 0, 1, 2]
    assert all(space.contains(action) for action in actions.numpy())


@pytest.mark.parametrize(
    "space",
    [MultiDiscrete([2, 3], start=[4, -1]), MultiDiscrete([2, 3], dtype=np.int32), MultiBinary(4)],
    ids=str,
)
def test_actions_of_several_components_are_of_the_space(space):
    distribution = for_action_space(space)
    noise = distribution.draw_noise(np.random.default_rng(0), (200,))
    actions = distribution.to_env(distribution.sample(np.zeros_like(noise), noise)).numpy()
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)
    assert len(np.unique(actions, axis=0)) == (6 if isinstance(space, MultiDiscrete) else 16)


@both_gaussians
@pytest.mark.parametrize(
    "space",
    [
        BOX,
        Box(np.array([-3, 0.1, -0.3, 5]), np.array([7, 0.3, 0.7, 1e6]), dtype=np.float64),
        Box(-1, 1, (4,), np.float16),
        Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (4,)),
    ],
    ids=["float32", "float64", "float16", "widest"],
)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_env_ready_actions_are_of_the_space_for_any_raw_action(kind, space, scale):
    raw = np.random.default_rng(0).normal(0, scale, (200, 4)).astype(np.float32)
    actions = kind(space).to_env(tf.constant(raw)).numpy()
    assert actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1000, 1000, [-1000.0, 0.0, 500.0, 1000.0]),
        (500, 1000, [500.0, 750.0, 875.0, 1000.0]),
        (-0.01, 0.01, [-0.01, 0.0, 0.005, 0.01]),
        (-1, 1, [-1.0, 0.0, 0.5, 1.0]),
        (3, 3, [3.0, 3.0, 3.0, 3.0]),
        (-np.inf, 100, [-1.5, 0.0, 0.5, 7.0]),
        (-np.finfo(np.float32).max, np.finfo(np.float32).max, [-1.5, 0.0, 0.5, 7.0]),
    ],
)
def test_clipped_actions_are_in_the_units_of_finite_bounds(low, high, expected):
    distribution = DiagonalGaussian(Box(low, high, (1,)))
    raw = tf.constant([[-1.5], [0.0], [0.5], [7.0]])
    np.testing.assert_allclose(distribution.to_env(raw)[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (-np.inf, 1.0), (0.0, np.inf)])
def test_half_bounded_and_unbounded_boxes_are_clipped_where_they_have_bounds(low, high):
    space = Box(low, high, (3,))
    actions = DiagonalGaussian(space).to_env(tf.constant([[-1e30, 0.5, 1e30]])).numpy()
    np.testing.assert_array_equal(actions, np.clip(np.float32([[-1e30, 0.5, 1e30]]), low, high))
    assert space.contains(actions[0])


def test_raw_actions_are_scored_before_they_are_clipped():
    distribution = DiagonalGaussian(Box(-1, 1, (1,)))
    near, far = distribution.log_prob(rows([0.0, 0.0], 2), tf.constant([[1.0], [3.0]])).numpy()
    # (3² - 1²)/2
    np.testing.assert_allclose(near - far, 4.0, rtol=1e-6)


# -------------------------------------------------------------------------- ranges and errors


def test_a_deviation_beyond_its_bounds_can_come_back():
    gaussian = DiagonalGaussian(Box(-1.0, 1.0, (1,)))
    parameters = tf.constant([[0.0, 5.0], [0.0, -25.0]])
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        log_prob = gaussian.log_prob(parameters, tf.constant([[0.1], [0.1]]))
    wide, narrow = tape.gradient(log_prob, parameters)[:, 1].numpy()
    assert wide < 0 < narrow


@both_gaussians
@pytest.mark.parametrize(("beyond", "bound"), [(1e3, LOG_STD_RANGE[1]), (-1e3, LOG_STD_RANGE[0])])
def test_log_std_is_clipped_to_its_range(kind, beyond, bound):
    distribution = kind(BOX)
    outside, inside = (rows([0.5] * 4 + [log_std] * 4) for log_std in (beyond, bound))
    noise = distribution.stateless_noise(seeds(1))
    actions = tf.fill([1, 4], 0.5)
    for function in (
        distribution.entropy,
        lambda p: distribution.sample(p, noise),
        lambda p: distribution.log_prob(p, actions),
        lambda p: list(distribution.describe(p).values())[1],
    ):
        result = function(outside)
        np.testing.assert_array_equal(result, function(inside))
        assert np.all(np.isfinite(result))
    assert distribution.kl_divergence(p=outside, q=inside).numpy().tolist() == [0.0]


@pytest.mark.parametrize(
    ("space", "squash"),
    [
        (Box(-np.inf, np.inf, (2,)), True),
        (Box(np.float32([0, -np.inf]), np.float32([1, 1])), True),
        (Discrete(3), True),
        (MultiDiscrete([2, 3]), True),
        (MultiBinary(3), True),
        (MultiDiscrete([[2, 3]]), False),
        (MultiBinary([2, 3]), False),
        (gymnasium.spaces.Dict(a=Discrete(2)), False),
        (Box(0, 3, (2,), np.int64), False),
        (Box(0, 1, (2, 2)), False),
        (Box(0, 1, ()), False),
    ],
    ids=str,
)
def test_a_space_without_a_distribution_is_named_in_the_error(space, squash):
    with pytest.raises(ValueError, match=re.escape(str(space))):
        for_action_space(space, squash)


def test_each_space_gets_its_distribution():
    assert type(for_action_space(Discrete(2))) is Categorical
    assert type(for_action_space(MultiDiscrete([2, 3]))) is MultiCategorical
    assert type(for_action_space(MultiBinary(2))) is Bernoulli
    assert type(for_action_space(BOX)) is DiagonalGaussian
    assert type(for_action_space(BOX, squash=True)) is SquashedGaussian


@every_distribution
def test_descriptions_say_what_is_sampled(case):
    distribution, p, _ = CASES[case]
    described = {name: x.numpy()[0] for name, x in distribution.describe(rows(p)).items()}
    _, q, _ = CASES["gaussian"]  # of which the state-dependent one's are the same
    in_env_units = {
        "mean": CENTRE + HALF_WIDTH * q[:4],
        "standard_deviation": HALF_WIDTH * np.exp(q[4:8]),
    }
    expected = {
        "categorical": {"probabilities": np.exp(log_softmax(p))},
        "multicategorical": {
            "probabilities": np.exp(np.concatenate([log_softmax(p[:2]), log_softmax(p[2:])]))
        },
        "bernoulli": {"probabilities": 1 / (1 + np.exp(-np.array(p)))},
        "gaussian": in_env_units,
        "state-dependent": in_env_units,
        "squashed": {"unsquashed_mean": p[:4], "unsquashed_standard_deviation": np.exp(p[4:8])},
    }[case]
    assert described.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(described[name], value, rtol=1e-6)
