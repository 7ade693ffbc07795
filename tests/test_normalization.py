"""Facts about the running statistics.

The statistics are float64: merging ten chunks leaves a relative error of order 1e-12 even
at mean 1e6 and standard deviation 1, where float32 would have lost the variance altogether. The
normalized output is float32 of order 1: 1e-5 is a hundred units in its last place.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_pg.normalization import ObservationNormalization, RewardScaling

MEANS, STDS = np.array([1e6, 0.0, -50.0]), np.array([1.0, 1e-3, 20.0])


def stream(rows=5000, dtype=np.float64, seed=0):
    """Rows whose dimensions differ in mean and spread, the first being pitfall 1.14's."""
    return (MEANS + STDS * np.random.default_rng(seed).normal(size=(rows, 3))).astype(dtype)


def updated(x, chunks=1, mask=None):
    """A layer that has seen `x` in chunks of uneven length."""
    layer = ObservationNormalization(x.shape[1:])
    mask = np.ones(len(x), bool) if mask is None else mask
    cuts = np.sort(np.random.default_rng(1).integers(0, len(x), chunks - 1))
    for rows, kept in zip(np.split(x, cuts), np.split(mask, cuts)):
        layer.update(rows, kept)
    return layer


def moments(layer):
    return layer.count.numpy(), layer.mean.numpy(), layer.variance().numpy()


def assert_moments_of(layer, x, rtol=1e-9):
    count, mean, variance = moments(layer)
    assert count == len(x)
    x = x.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(variance, x.var(axis=0), rtol=rtol)


def reference(x, seen, epsilon=1e-8, clip=10.0):
    """The formula in float64 NumPy, for float32 observations `x` and all rows seen so far."""
    x, seen = x.astype(np.float32).astype(np.float64), seen.astype(np.float64)
    return np.clip((x - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + epsilon), -clip, clip)


# --------------------------------------------------------------------------- running statistics


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunks", [1, 2, 10])
def test_chunked_updates_give_the_statistics_of_all_the_data(dtype, chunks):
    x = stream(dtype=dtype)
    assert_moments_of(updated(x, chunks), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("chunks", [1, 10])
def test_normalized_observations_equal_the_float64_reference_at_mean_1e6(dtype, chunks):
    # The layer computes in float32, so its input is the observation rounded to float32.
    x = stream(dtype=dtype)
    np.testing.assert_allclose(updated(x, chunks)(x), reference(x, x), atol=1e-5)


def test_the_order_of_the_chunks_does_not_matter():
    x = stream()
    for one, other in zip(moments(updated(x, 10)), moments(updated(x[::-1].copy(), 10))):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("garbage", [1e9, np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masked_rows_are_ignored_whatever_they_hold(garbage, dtype):
    x = stream(dtype=dtype)
    mask = np.random.default_rng(2).random(len(x)) < 0.7
    kept = x[mask]
    x[~mask] = garbage
    assert_moments_of(updated(x, 4, mask), kept)


def test_a_batch_without_valid_rows_changes_nothing():
    layer = updated(stream())
    before = layer.get_weights()
    layer.update(np.full((4, 3), np.nan), np.zeros(4, bool))
    for old, new in zip(before, layer.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1, -1e9])
def test_a_constant_observation_has_variance_zero_and_normalizes_to_zero(value):
    x = np.full((1000, 1), value, np.float32)
    layer = updated(x, 10)
    # Exactly: a thousand equal float32 numbers add up without rounding in float64.
    assert layer.variance().numpy().tolist() == [0.0]
    np.testing.assert_array_equal(layer(x), np.zeros((1000, 1)))


def test_the_variance_is_never_negative():
    # Spread of one unit in the last place of float32, where E[x²] - E[x]² would lose every digit.
    x = np.float32(1e6) + np.float32(0.0625) * (np.arange(1000) % 2).astype(np.float32)[:, None]
    layer = ObservationNormalization((1,))
    for rows in np.split(x, 10):
        layer.update(rows, np.ones(100, bool))
        assert layer.variance().numpy() >= 0
    np.testing.assert_allclose(layer.variance(), [0.03125**2], rtol=1e-9)


def test_one_row_has_its_own_mean_and_no_variance():
    layer = updated(stream(rows=1))
    np.testing.assert_array_equal(layer.mean, stream(rows=1)[0])
    np.testing.assert_array_equal(layer.variance(), np.zeros(3))
    np.testing.assert_allclose(layer(stream(rows=1).astype(np.float32) + 1e9), np.full((1, 3), 10))


def test_observations_of_higher_rank_have_statistics_per_entry():
    x = np.random.default_rng(0).normal(size=(200, 2, 3))
    x[:, 1, 2] += 5
    assert_moments_of(updated(x, 7), x)


def test_each_dimension_has_its_own_statistics():
    x = stream()
    layer = updated(x)
    for i in range(3):
        alone = updated(x[:, i : i + 1])
        # Sums of one column and of three are added up in another order.
        np.testing.assert_allclose(
            layer(x)[:, i : i + 1], alone(x[:, i : i + 1]), rtol=1e-5, atol=1e-6
        )


# ------------------------------------------------------------------------------ the forward pass


@pytest.mark.parametrize("training", [None, False, True])
def test_a_forward_pass_changes_no_statistics(training):
    layer = updated(stream())
    before = layer.get_weights()
    keywords = {} if training is None else {"training": training}
    first = layer(stream(seed=3), **keywords).numpy()
    for old, new in zip(before, layer.get_weights()):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(first, layer(stream(seed=3), **keywords))


def test_before_the_first_update_observations_are_clipped_only():
    x = np.float32([[-1e9, -10.5, -3.7], [0.0, 0.1, 12.0]])
    np.testing.assert_allclose(
        ObservationNormalization((3,))(x), np.clip(x, -10, 10), rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize("clip", [10.0, 2.5])
def test_normalized_observations_are_clipped(clip):
    layer = ObservationNormalization((1,), clip=clip)
    layer.update(np.array([[4.0], [6.0]]), np.ones(2, bool))
    x = np.array([[5 - 1.01 * clip], [5 - 0.99 * clip], [5 + 0.99 * clip], [5 + 1.01 * clip]])
    expected = [[-clip], [-0.99 * clip], [0.99 * clip], [clip]]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-6)


def test_statistics_are_weights_that_no_optimizer_trains():
    layer = updated(stream())
    assert layer.trainable_weights == []
    copy = ObservationNormalization((3,))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(stream(seed=3)), layer(stream(seed=3)))
    # The copy goes on where the layer would.
    for each in (copy, layer):
        each.update(stream(seed=3), np.ones(5000, bool))
    np.testing.assert_array_equal(copy(stream()), layer(stream()))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_updates_and_calls_equal_eager(jit_compile):
    x = stream(rows=600, dtype=np.float32)
    mask = np.arange(600) % 4 > 0
    x[~mask] = np.nan
    layer = ObservationNormalization((3,))
    update = tf.function(layer.update, jit_compile=jit_compile)
    for rows in range(0, 600, 200):
        update(tf.constant(x[rows : rows + 200]), tf.constant(mask[rows : rows + 200]))
    assert_moments_of(layer, x[mask])
    normalize = tf.function(layer.__call__, jit_compile=jit_compile)
    np.testing.assert_allclose(
        normalize(tf.constant(x[mask])), reference(x[mask], x[mask]), atol=1e-5
    )


# -------------------------------------------------------------------------------- reward scaling


def scaled_step_by_step(rollouts, clip=10.0):
    """Algorithm 1 of Engstrom et al., in which the N environments of a step are added at once."""
    seen, scaled = [], []
    for rewards, returns, mask in rollouts:
        scaled.append(np.zeros_like(rewards))
        for t in range(len(rewards)):
            seen += list(map(float, returns[t][mask[t]]))
            deviation = np.sqrt(np.var(seen) + 1e-8) if seen else 1.0
            scaled[-1][t] = np.clip(rewards[t] / deviation, -clip, clip)
    return scaled


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e6])
@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_rewards_are_divided_by_the_deviation_of_the_returns_up_to_their_step(jit_compile, offset):
    rng = np.random.default_rng(0)
    rollouts = [
        (
            rng.normal(1.0, 9.0, (6, 3)),
            np.float32(offset + rng.normal(0.0, 5.0, (6, 3))),
            rng.random((6, 3)) < 0.8,
        )
        for _ in range(3)
    ]
    layer = RewardScaling()

    def scale_then_update(rewards, returns, mask):
        scaled = layer(rewards, returns, mask)
        layer.update(tf.reshape(returns, [-1]), tf.reshape(mask, [-1]))
        return scaled

    if jit_compile is not None:
        scale_then_update = tf.function(scale_then_update, jit_compile=jit_compile)
    for rollout, expected in zip(rollouts, scaled_step_by_step(rollouts), strict=True):
        scaled = scale_then_update(*map(tf.constant, rollout))
        np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    seen = np.concatenate([returns[mask] for _, returns, mask in rollouts])
    np.testing.assert_allclose(layer.variance(), seen.astype(float).var(), rtol=1e-6)


def test_rewards_are_not_centred():
    rewards, returns = np.float32([[2.0, -2.0]]), np.array([[100.0, 104.0]])
    scaled = RewardScaling()(rewards, returns, np.ones((1, 2), bool))
    np.testing.assert_allclose(scaled, [[1.0, -1.0]], rtol=1e-6)


def test_masked_returns_are_ignored():
    returns, mask = np.array([[1.0, np.nan, 5.0, 1e9]]), np.array([[True, False, True, False]])
    rewards = np.full((1, 4), 4.0, np.float32)
    layer = RewardScaling()
    np.testing.assert_allclose(layer(rewards, returns, mask), 2.0 + 0 * rewards, rtol=1e-6)
    layer.update(returns[0], mask[0])
    nothing = np.zeros((1, 4), bool)
    np.testing.assert_allclose(layer(rewards, returns, nothing), 2.0 + 0 * rewards, rtol=1e-6)


def test_before_the_first_return_rewards_are_clipped_only():
    rewards = np.float32([[-11.0, 0.3, 11.0]])
    scaled = RewardScaling()(rewards, np.zeros((1, 3)), np.zeros((1, 3), bool))
    np.testing.assert_allclose(scaled, [[-10.0, 0.3, 10.0]], rtol=1e-7)


def test_scaled_rewards_are_clipped_and_keep_their_shape():
    layer = RewardScaling()
    layer.update(np.array([-0.5, 0.5]), np.ones(2, bool))
    rewards, nothing = np.float32([[4.0, 6.0], [-4.0, -6.0]]), np.zeros((2, 2), bool)
    scaled = layer(rewards, np.zeros((2, 2)), nothing)
    np.testing.assert_allclose(scaled, [[8.0, 10.0], [-8.0, -10.0]], rtol=1e-6)


def test_equal_returns_scale_to_the_bound_and_not_beyond():
    """As in the first step of an environment that always pays 1."""
    ones = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(RewardScaling()(ones, ones, ones > 0), 10.0 * ones)


def test_scaling_rewards_changes_no_statistics():
    layer = RewardScaling()
    layer.update(np.array([1.0, 2.0]), np.ones(2, bool))
    before = layer.get_weights()
    layer(np.float32([[100.0, 1.0]]), np.array([[-7.0, 30.0]]), np.ones((1, 2), bool))
    for old, new in zip(before, layer.get_weights()):
        np.testing.assert_array_equal(old, new)


# ---------------------------------------------------------------------------------------- config


@pytest.mark.parametrize(
    "layer",
    [
        ObservationNormalization((3,), clip=5.0, epsilon=1e-4, name="observations"),
        RewardScaling(clip=5.0, epsilon=1e-4, name="rewards"),
    ],
    ids=["observations", "rewards"],
)
def test_config_round_trip(layer):
    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config
    # As in an archive, where the config is written as JSON.
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    restored = keras.saving.deserialize_keras_object(written)
    assert type(restored) is type(layer)
    assert (restored.clip, restored.epsilon, restored.name) == (5.0, 1e-4, layer.name)
    assert [w.shape for w in restored.weights] == [w.shape for w in layer.weights]
