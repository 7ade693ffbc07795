"""Facts about the losses: oracles are Python loops in float64, gradients are taken by hand.

Inputs are float64 where a function is compared with an oracle, so that the tolerance 1e-12 is
rounding and nothing else.
"""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_pg import losses

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
ALL = tf.ones(5, tf.bool)


def mean_of(rows):
    """A loss of one number a row as a scalar, whose last argument is a mask."""
    return lambda *arguments: losses.masked_mean(rows(*arguments[:-1]), arguments[-1])


# Every function of several tensors: a call, and how many tensors it takes (a mask comes last).
FUNCTIONS = {
    "masked_mean": (losses.masked_mean, 1),
    "weighted_mean": (lambda x, m: losses.weighted_mean(x, tf.cast(m, x.dtype) / 5), 1),
    "policy_gradient": (mean_of(losses.policy_gradient), 2),
    "surrogate": (mean_of(losses.surrogate), 2),
    "clipped_surrogate": (mean_of(lambda r, a: losses.clipped_surrogate(r, a, 0.2)), 2),
    "squared_error": (mean_of(losses.squared_error), 2),
    "clipped_squared_error": (
        mean_of(lambda v, o, t: losses.clipped_squared_error(v, o, t, 0.5)),
        3,
    ),
    "explained_variance": (losses.explained_variance, 2),
}

# The same objectives, one row at a time.
ROWS = {
    "masked_mean": lambda x: x,
    "weighted_mean": lambda x: x,
    "policy_gradient": lambda log_prob, a: -log_prob * a,
    "surrogate": lambda r, a: -r * a,
    "clipped_surrogate": lambda r, a: -min(r * a, min(max(r, 0.8), 1.2) * a),
    "squared_error": lambda v, t: (v - t) ** 2,
    "clipped_squared_error": lambda v, o, t: max(
        (v - t) ** 2, (o + min(max(v - o, -0.5), 0.5) - t) ** 2
    ),
}


def columns(count, rows=5, seed=0):
    """`count` tensors of distinct positive numbers around 1, float64 [rows]."""
    return [tf.constant(x) for x in np.random.default_rng(seed).uniform(0.2, 2.0, (count, rows))]


def gradients_of(loss, *sources):
    """The loss and its gradients; `loss` is a function of the sources."""
    with tf.GradientTape() as tape:
        tape.watch(sources)
        result = loss(*sources)
    return result, tape.gradient(result, sources)


# ------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("name", "position"),
    [(name, i) for name, (_, count) in FUNCTIONS.items() for i in range(count + 1)],
)
def test_one_argument_of_shape_b_by_one_is_refused(name, position):
    function, count = FUNCTIONS[name]
    arguments = [*columns(count), ALL]
    arguments[position] = arguments[position][:, None]
    with pytest.raises(ValueError, match=r"\[B\]"):
        function(*arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_that_are_all_b_by_one_are_refused(name):
    function, count = FUNCTIONS[name]
    with pytest.raises(ValueError, match=r"\[B\]"):
        function(*(x[:, None] for x in [*columns(count), ALL]))


@pytest.mark.parametrize("shapes", [((5,), (5, 1)), ((5, 1), (5,)), ((5, 1), (5, 1))])
def test_probability_ratio_refuses_b_by_one(shapes):
    with pytest.raises(ValueError, match=r"\[B\]"):
        losses.probability_ratio(*(tf.zeros(shape) for shape in shapes))


# ------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize("name", ROWS)
def test_five_distinct_rows_equal_a_python_loop(name):
    function, count = FUNCTIONS[name]
    arguments = columns(count)
    expected = math.fsum(ROWS[name](*map(float, row)) for row in zip(*arguments)) / 5
    np.testing.assert_allclose(function(*arguments, ALL), expected, **ROUNDING)


def test_the_probability_ratio_equals_a_python_loop():
    log_probs, old_log_probs = columns(2)
    ratio, log_ratio = losses.probability_ratio(log_probs, old_log_probs)
    differences = [float(new) - float(old) for new, old in zip(log_probs, old_log_probs)]
    np.testing.assert_allclose(log_ratio, differences, **ROUNDING)
    np.testing.assert_allclose(ratio, [math.exp(x) for x in differences], **ROUNDING)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("garbage", [1e9, -1e9, 0.0])
def test_masked_rows_change_neither_the_loss_nor_the_gradient(name, garbage):
    function, count = FUNCTIONS[name]
    arguments = columns(count)
    padded = [tf.concat([x, tf.fill([3], tf.constant(garbage, x.dtype))], 0) for x in arguments]
    mask = tf.concat([ALL, tf.zeros(3, tf.bool)], 0)
    loss, (gradient, *_) = gradients_of(lambda *x: function(*x, ALL), *arguments)
    padded_loss, (padded_gradient, *_) = gradients_of(lambda *x: function(*x, mask), *padded)
    np.testing.assert_allclose(padded_loss, loss, **ROUNDING)
    np.testing.assert_allclose(padded_gradient[:5], gradient, **ROUNDING)
    np.testing.assert_array_equal(padded_gradient[5:], np.zeros(3))


@pytest.mark.parametrize("name", ROWS)
def test_no_valid_row_is_a_loss_of_zero_not_nan(name):
    function, count = FUNCTIONS[name]
    assert float(function(*columns(count), tf.zeros(5, tf.bool))) == 0


def test_weights_of_a_mean_count_each_valid_row_the_same():
    mask = tf.constant([[True, True, True, True], [True, False, False, True], [False] * 4])
    expected = [[0.25] * 4, [0.5, 0, 0, 0.5], [0.0] * 4]
    np.testing.assert_array_equal(losses.mean_weights(mask), expected)


def test_a_weighted_mean_of_several_quantities_is_that_of_each():
    rows, mask = tf.stack(columns(3)), tf.constant([True, False, True, True, False])
    weights = tf.cast(losses.mean_weights(mask), tf.float64)
    each = [losses.weighted_mean(x, weights) for x in rows]
    np.testing.assert_array_equal(losses.weighted_mean(rows, weights), each)
    # The weights are float32: a third is one only to seven digits.
    np.testing.assert_allclose(each, [losses.masked_mean(x, mask) for x in rows], rtol=1e-7)


def test_rows_of_weight_zero_may_be_nan():
    x, weights = tf.constant([1.0, np.nan, np.inf]), tf.constant([1.0, 0.0, 0.0])
    loss, (gradient,) = gradients_of(lambda x: losses.weighted_mean(x, weights), x)
    assert float(loss) == 1 and gradient.numpy().tolist() == [1, 0, 0]


# ---------------------------------------------------------------------------- policy surrogate


def test_at_ratio_one_the_surrogate_gradient_is_the_policy_gradient():
    logits = tf.constant([[0.3, -1.2, 0.8], [0.0, 0.5, -0.5]], tf.float64)
    states, actions = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0])
    advantages = tf.constant([2.0, -1.0, 0.5, 3.0, -4.0], tf.float64)

    def loss(logits):
        log_probs = tf.gather_nd(tf.nn.log_softmax(logits), np.stack([states, actions], 1))
        ratio, _ = losses.probability_ratio(log_probs, tf.identity(log_probs))
        return tf.reduce_mean(losses.clipped_surrogate(ratio, advantages, 0.2))

    _, (gradient,) = gradients_of(loss, logits)

    policy = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.zeros((2, 3))
    for state, action, advantage in zip(states, actions, advantages.numpy()):
        # ∇ log softmax = onehot(a) - π, and the loss is minus the objective.
        expected[state] -= advantage * (np.eye(3)[action] - policy[state]) / 5
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(gradient, expected, **ROUNDING)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.5, 1.0, 0.0),  # better and already likelier: nothing more to gain
        (0.5, -1.0, 0.0),  # worse and already less likely
        (1.5, -1.0, 1.0),  # worse but likelier: a mistake, corrected in full
        (0.5, 1.0, -1.0),  # better but less likely
        (1.1, 1.0, -1.0),
        (0.9, -1.0, 1.0),
    ],
)
def test_the_gradient_stops_on_the_pessimistic_side_only(ratio, advantage, slope):
    _, (gradient,) = gradients_of(
        lambda r: losses.clipped_surrogate(r, tf.constant([advantage]), 0.2),
        tf.constant([ratio]),
    )
    assert gradient.numpy().tolist() == [slope]


def test_the_clipped_surrogate_never_exceeds_the_unclipped_objective():
    ratio, advantages = columns(2, rows=50)
    advantages = advantages - 1.0
    assert np.all(-losses.clipped_surrogate(ratio, advantages, 0.2) <= ratio * advantages)


@pytest.mark.parametrize("log_ratio", [1e4, -1e4, 100.0, -100.0])
def test_the_ratio_stays_finite_at_extreme_log_ratios(log_ratio):
    def loss(log_probs):
        ratio, bounded = losses.probability_ratio(log_probs, tf.zeros(2))
        assert np.all(np.isfinite(ratio)) and np.all(ratio > 0)
        assert np.all(np.isfinite(losses.kl_k3(bounded)))
        return losses.clipped_surrogate(ratio, tf.constant([1.0, -1.0]), 0.2)

    value, (gradient,) = gradients_of(loss, tf.fill([2], log_ratio))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


# ----------------------------------------------------------------------------------- constants


def test_nothing_flows_into_the_old_log_probs():
    _, (new, old) = gradients_of(
        lambda new, old: losses.probability_ratio(new, old)[0], *columns(2)
    )
    assert old is None and np.all(new.numpy() > 0)


def test_nothing_flows_into_the_advantages():
    _, (ratio, advantages) = gradients_of(
        lambda r, a: losses.clipped_surrogate(r, a, 0.2), *columns(2)
    )
    assert advantages is None and np.any(ratio.numpy() != 0)


def test_nothing_flows_into_the_targets():
    values, targets = columns(2)
    _, (gradient, into_targets) = gradients_of(losses.squared_error, values, targets)
    assert into_targets is None
    np.testing.assert_allclose(gradient, 2 * (values - targets), **ROUNDING)


def test_nothing_flows_into_the_old_values_or_the_targets_of_the_clipped_error():
    _, (values, old_values, targets) = gradients_of(
        lambda v, o, t: losses.clipped_squared_error(v, o, t, 0.5), *columns(3)
    )
    assert old_values is None and targets is None and np.any(values.numpy() != 0)


def test_targets_computed_from_the_same_weights_count_as_constants():
    weight = tf.constant(2.0, tf.float64)
    (features,) = columns(1)

    def semi_gradient(weight):
        return losses.squared_error(weight * features, 1.0 + 0.9 * weight * features)

    constant_targets = 1.0 + 0.9 * 2.0 * features
    _, with_bootstrap = gradients_of(semi_gradient, weight)
    _, with_constants = gradients_of(
        lambda w: losses.squared_error(w * features, constant_targets), weight
    )
    np.testing.assert_allclose(with_bootstrap, with_constants, **ROUNDING)


# ---------------------------------------------------------------------------------------- k3


def test_k3_is_zero_and_flat_where_the_policies_agree():
    value, (gradient,) = gradients_of(losses.kl_k3, tf.constant([0.0]))
    assert value.numpy().tolist() == [0.0]
    assert gradient.numpy().tolist() == [0.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_k3_is_never_negative(dtype):
    magnitudes = np.logspace(-12, np.log10(20), 20_001)
    log_ratio = np.concatenate([-magnitudes, magnitudes]).astype(dtype)
    assert np.min(losses.kl_k3(tf.constant(log_ratio))) >= 0


def test_k3_is_half_the_squared_log_ratio_near_zero():
    log_ratio = np.array([-1e-3, 1e-3])
    # The next term of the series is x³/6: a third of x, relative to x²/2.
    np.testing.assert_allclose(losses.kl_k3(log_ratio), log_ratio**2 / 2, rtol=1e-3 / 2)


def test_the_mean_of_k3_over_the_old_policy_is_the_kl_divergence_from_it():
    rng = np.random.default_rng(0)
    old, new = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.3, 0.3, 0.1, 0.3])
    actions = rng.choice(4, size=100_000, p=old)
    k3 = losses.kl_k3(np.log(new[actions]) - np.log(old[actions])).numpy()
    forward, backward = np.sum(old * np.log(old / new)), np.sum(new * np.log(new / old))
    standard_error = k3.std() / np.sqrt(len(k3))
    assert abs(k3.mean() - forward) < 3 * standard_error
    # The test can tell the directions apart.
    assert abs(forward - backward) > 10 * standard_error


# --------------------------------------------------------------------------- value functions


def test_the_clipped_error_equals_the_plain_one_inside_the_clip_range():
    old_values, targets, moves = columns(3)
    values = old_values + 0.49 * (moves - 1.0)
    np.testing.assert_allclose(
        losses.clipped_squared_error(values, old_values, targets, 0.5),
        losses.squared_error(values, targets),
        **ROUNDING,
    )


def test_the_clipped_error_is_nowhere_below_the_plain_one():
    rows = np.random.default_rng(0).normal(0, 2, (3, 50))
    values, old_values, targets = map(tf.constant, rows)
    clipped = losses.clipped_squared_error(values, old_values, targets, 0.5).numpy()
    plain = losses.squared_error(values, targets).numpy()
    # Inside the range V_old + (V - V_old) may round to a neighbour of V.
    assert np.all(clipped >= plain * (1 - 1e-12))
    assert np.sum(clipped > 1.01 * plain) > 5


def test_explained_variance_of_a_perfect_critic_is_one():
    (returns,) = columns(1)
    assert float(losses.explained_variance(returns, returns, ALL)) == 1


def test_explained_variance_of_a_constant_critic_is_zero():
    (returns,) = columns(1)
    constant = tf.fill([5], tf.constant(0.7, tf.float64))
    np.testing.assert_allclose(losses.explained_variance(constant, returns, ALL), 0, atol=1e-12)


def test_explained_variance_of_a_critic_worse_than_a_constant_is_negative():
    (returns,) = columns(1)
    # The error is 2R, so its variance is 4 Var[R].
    np.testing.assert_allclose(losses.explained_variance(-returns, returns, ALL), -3, **ROUNDING)


def test_explained_variance_does_not_see_a_bias():
    values, returns = columns(2)
    np.testing.assert_allclose(
        losses.explained_variance(values + 3.0, returns, ALL),
        losses.explained_variance(values, returns, ALL),
        **ROUNDING,
    )


def test_explained_variance_equals_numpy():
    values, returns = columns(2)
    expected = 1 - np.var(returns - values) / np.var(returns)
    np.testing.assert_allclose(
        losses.explained_variance(values, returns, ALL), expected, **ROUNDING
    )


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -0.3, 100 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("count", [1, 2, 7, 256, 1000])
def test_explained_variance_is_zero_where_the_returns_do_not_vary(value, count):
    values = tf.constant(np.random.default_rng(0).normal(size=count), tf.float32)
    returns = tf.fill([count], np.float32(value))
    assert float(losses.explained_variance(values, returns, tf.ones(count, tf.bool))) == 0


def test_explained_variance_ignores_returns_that_vary_in_masked_rows_only():
    values, returns = tf.constant([1.0, 2.0, 3.0]), tf.constant([5.0, 5.0, 9.0])
    mask = tf.constant([True, True, False])
    assert float(losses.explained_variance(values, returns, mask)) == 0
