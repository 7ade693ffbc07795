"""Facts about minibatches: which rows are in them, and in what order."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_pg.rollouts.minibatches import flatten_time, shuffled_minibatches
from keras_pg.rollouts.rollout import Rollout

ROWS = 24


def minibatches(seed=(0, 1), epochs=3, num_minibatches=4, rows=ROWS):
    """Row numbers, [epochs, num_minibatches, rows / num_minibatches]."""
    count, minibatch = shuffled_minibatches(
        tf.range(rows), seed=tf.constant(seed), epochs=epochs, num_minibatches=num_minibatches
    )
    assert count == epochs * num_minibatches
    drawn = np.array([minibatch(tf.constant(i)) for i in range(count)])
    return drawn.reshape(epochs, num_minibatches, rows // num_minibatches)


@pytest.mark.parametrize("num_minibatches", [2, 3, 4, ROWS])
@pytest.mark.parametrize("epochs", [1, 5])
def test_each_epoch_holds_every_row_exactly_once(epochs, num_minibatches):
    drawn = minibatches(epochs=epochs, num_minibatches=num_minibatches)
    for epoch in drawn:
        assert sorted(epoch.ravel()) == list(range(ROWS))


def test_a_large_epoch_holds_every_row_exactly_once():
    drawn = minibatches(epochs=2, num_minibatches=4, rows=2**15)
    for epoch in drawn:
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(2**15))


def test_epochs_differ_and_are_shuffled():
    epochs = {tuple(epoch.ravel()) for epoch in minibatches(epochs=20)}
    assert len(epochs) == 20
    assert tuple(range(ROWS)) not in epochs


def test_the_seed_decides():
    drawn = minibatches(seed=(3, 4))
    np.testing.assert_array_equal(drawn, minibatches(seed=(3, 4)))
    for other in ((3, 5), (4, 4), (4, 3), (0, 0)):
        assert np.any(drawn != minibatches(seed=other))


@functools.cache
def orders_over(what):
    """2000 orders of 6 rows that differ in one thing: the epoch or one word of the seed."""

    def orders(seed, epochs):
        count, minibatch = shuffled_minibatches(
            tf.range(6), seed=seed, epochs=epochs, num_minibatches=2
        )
        return tf.reshape(tf.map_fn(minibatch, tf.range(count)), [epochs, 6])

    @tf.function
    def all_orders():
        if what == "epochs":
            return orders(tf.constant([0, 1], tf.int64), 2000)
        changing, fixed = tf.range(2000, dtype=tf.int64), tf.fill([2000], tf.constant(7, tf.int64))
        words = [fixed, changing] if what == "iterations" else [changing, fixed]
        return tf.map_fn(lambda seed: orders(seed, 1)[0], tf.stack(words, 1), tf.int32)

    return all_orders().numpy()


@pytest.mark.parametrize("what", ["epochs", "iterations", "agent seeds"])
def test_every_row_is_equally_likely_at_every_place(what):
    places = np.argsort(orders_over(what), axis=1)
    counts = np.array([np.bincount(places[:, row], minlength=6) for row in range(6)])
    expected = 2000 / 6
    # Sums of n random permutation matrices vary in (6 - 1)² directions, by n/5 in each and not by
    # n/6: hence the factor. Chi-square of mean 25 and standard deviation √50: 46 is 3 of them up.
    assert np.sum((counts - expected) ** 2 / expected) * 5 / 6 < 46


@pytest.mark.parametrize("what", ["epochs", "iterations", "agent seeds"])
def test_successive_orders_are_independent(what):
    places = np.argsort(orders_over(what), axis=1)
    pairs = places[:-1, 0] * 6 + places[1:, 0]
    counts, expected = np.bincount(pairs, minlength=36), len(pairs) / 36
    # Chi-square of mean 35 and standard deviation √70: 60 is 3 of them up.
    assert np.sum((counts - expected) ** 2 / expected) < 60


def test_one_minibatch_is_the_data_itself_in_order():
    data = (tf.range(ROWS), tf.random.stateless_normal((ROWS, 2), [0, 1]))
    count, minibatch = shuffled_minibatches(
        data, seed=tf.constant([0, 1]), epochs=3, num_minibatches=1
    )
    assert count == 3
    for i in range(3):
        assert minibatch(tf.constant(i)) is data


def test_the_fields_of_a_row_stay_together():
    rows = tf.range(ROWS)
    data = {"row": rows, "vector": tf.stack([10 * rows, 20 * rows], 1), "even": rows % 2 == 0}
    count, minibatch = shuffled_minibatches(
        data, seed=tf.constant([0, 1]), epochs=2, num_minibatches=4
    )
    for i in range(count):
        drawn = {name: x.numpy() for name, x in minibatch(i).items()}
        row = drawn["row"]
        assert row.shape == (6,) and drawn["vector"].shape == (6, 2)
        np.testing.assert_array_equal(drawn["vector"], np.stack([10 * row, 20 * row], 1))
        np.testing.assert_array_equal(drawn["even"], row % 2 == 0)


def test_a_number_that_does_not_divide_the_rows_drops_none_in_silence():
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        minibatches(num_minibatches=5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_minibatches_are_the_eager_ones(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def drawn(seed):
        count, minibatch = shuffled_minibatches(
            tf.range(ROWS), seed=seed, epochs=3, num_minibatches=4
        )
        # As in training: a loop in the graph, whose counter is a tensor.
        batches = tf.zeros((count, ROWS // 4), tf.int32)
        return tf.while_loop(
            lambda i, batches: i < count,
            lambda i, batches: (
                i + 1,
                tf.tensor_scatter_nd_update(batches, [[i]], minibatch(i)[None]),
            ),
            (tf.constant(0), batches),
        )[1]

    for seed in ([0, 1], [5, 2**40]):
        eager = minibatches(seed=np.array(seed, np.int64)).reshape(12, 6)
        np.testing.assert_array_equal(drawn(tf.constant(seed, tf.int64)), eager)


def test_flattened_time_is_the_order_of_reshape():
    steps, envs = 5, 3
    field = np.arange(steps * envs * 2).reshape(steps, envs, 2)
    flat, flags = flatten_time((tf.constant(field), tf.constant(field[..., 0] % 2 == 0)))
    np.testing.assert_array_equal(flat, field.reshape(-1, 2))
    assert flags.shape == (15,)
    for t in range(steps):
        for n in range(envs):
            np.testing.assert_array_equal(flat[t * envs + n], field[t, n])
    # And back again, as values are for `gae`.
    np.testing.assert_array_equal(tf.reshape(flat, field.shape), field)


def test_a_flattened_rollout_is_a_rollout():
    rollout = Rollout(*(tf.fill([4, 2, *shape], i) for i, shape in enumerate([(3,)] + [()] * 9)))
    flat = flatten_time(rollout)
    assert isinstance(flat, Rollout)
    assert flat.observations.shape == (8, 3) and flat.rewards.shape == (8,)
    assert flat.rewards.numpy().tolist() == [2] * 8
