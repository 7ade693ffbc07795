"""Facts about minibatches: which rows are in them, and in what order."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_pg.rollouts.minibatches import Minibatches, flatten_time, in_parts
from keras_pg.rollouts.rollout import Rollout

ROWS = 24


def minibatches(seed=(0, 1), epochs=3, num_minibatches=4, rows=ROWS):
    """Row numbers, [epochs, num_minibatches, rows / num_minibatches]."""
    batches = Minibatches(
        rows, seed=tf.constant(seed), epochs=epochs, num_minibatches=num_minibatches
    )
    assert batches.count == epochs * num_minibatches
    drawn = np.array([batches(tf.constant(i), [tf.range(rows)]) for i in range(batches.count)])
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
        batches = Minibatches(6, seed=seed, epochs=epochs, num_minibatches=2)
        return tf.reshape(batches.split(tf.range(6)), [epochs, 6])

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
    batch = (tf.range(ROWS), tf.random.stateless_normal((ROWS, 2), [0, 1]))
    batches = Minibatches(ROWS, seed=tf.constant([0, 1]), epochs=3, num_minibatches=1)
    assert batches.count == 3
    part = batches.split(batch[0])
    assert part.shape == (1, ROWS)
    for i in range(3):
        *rows, from_split = batches(tf.constant(i), batch, split=[part])
        assert rows[0] is batch[0] and rows[1] is batch[1]
        np.testing.assert_array_equal(from_split, batch[0])


def test_parts_split_beforehand_are_those_of_the_rows():
    batches = Minibatches(ROWS, seed=tf.constant([0, 1]), epochs=2, num_minibatches=4)
    squares = tf.square(batches.split(tf.range(ROWS)))
    assert squares.shape == (8, 6)
    for i in range(batches.count):
        rows, part = batches(tf.constant(i), [tf.range(ROWS)], split=[squares])
        np.testing.assert_array_equal(part, tf.square(rows))


def test_the_fields_of_a_row_stay_together():
    rows = tf.range(ROWS)
    batch = (rows, tf.stack([10 * rows, 20 * rows], 1), rows % 2 == 0)
    batches = Minibatches(ROWS, seed=tf.constant([0, 1]), epochs=2, num_minibatches=4)
    for i in range(batches.count):
        row, vector, even = (x.numpy() for x in batches(i, batch))
        assert row.shape == (6,) and vector.shape == (6, 2)
        np.testing.assert_array_equal(vector, np.stack([10 * row, 20 * row], 1))
        np.testing.assert_array_equal(even, row % 2 == 0)


def test_a_number_that_does_not_divide_the_rows_drops_none_in_silence():
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        minibatches(num_minibatches=5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_minibatches_are_the_eager_ones(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def drawn(seed):
        batches = Minibatches(ROWS, seed=seed, epochs=3, num_minibatches=4)
        # As in training: a loop in the graph, whose counter is a tensor.
        rows = tf.zeros((batches.count, ROWS // 4), tf.int32)
        return tf.while_loop(
            lambda i, rows: i < batches.count,
            lambda i, rows: (
                i + 1,
                tf.tensor_scatter_nd_update(rows, [[i]], batches(i, [tf.range(ROWS)])),
            ),
            (tf.constant(0), rows),
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


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 23, 24, 25])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_parts_is_the_function_of_all_rows_and_sees_few_at_once(monkeypatch, rows, jit_compile):
    monkeypatch.setattr("keras_pg.rollouts.minibatches._NUMBERS_AT_ONCE", 8 * 7)
    images, flags = tf.random.normal((rows, 2, 3)), tf.range(rows) % 2
    seen = []

    def function(observations):
        seen.append(observations["image"].shape[0])
        flag = tf.cast(observations["flag"], tf.float32)[:, None]
        return tf.reduce_sum(observations["image"], axis=1) * flag

    @tf.function(jit_compile=jit_compile)
    def evaluated():
        return in_parts(function, {"image": images, "flag": flags})

    result = evaluated()
    assert set(seen) == {rows if rows <= 8 else -(-rows // -(-rows // 8))}
    assert max(seen) <= 8
    np.testing.assert_array_equal(result, function({"image": images, "flag": flags}))
