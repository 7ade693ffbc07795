"""Facts about the random numbers that are functions of a seed."""

import numpy as np
import pytest
import tensorflow as tf

from keras_pg import randomness

COUNT = 100_000


@pytest.mark.parametrize("function", [randomness.bits, randomness.uniform, randomness.normal])
def test_numbers_are_the_same_eagerly_in_a_graph_and_under_xla(function):
    seed = tf.constant([7, -3])
    eager = function(seed, (50, 3)).numpy()
    for jit_compile in (False, True):
        compiled = tf.function(lambda seed: function(seed, (50, 3)), jit_compile=jit_compile)(seed)
        # Logarithm and cosine may differ in their last bits, integers may not.
        tolerance = 0 if function is not randomness.normal else 1e-5
        np.testing.assert_allclose(compiled, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("function", [randomness.bits, randomness.uniform, randomness.normal])
def test_each_row_is_a_function_of_its_own_seed(function):
    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (5, 2)).astype(np.int32)
    together = function(seeds, (4, 3)).numpy()
    assert together.shape == (5, 4, 3)
    for seed, row in zip(seeds, together, strict=True):
        np.testing.assert_allclose(function(seed, (4, 3)), row, rtol=1e-6)


@pytest.mark.parametrize("along", ["positions", "first numbers", "second numbers"])
def test_uniform_numbers_are_uniform_and_independent(along):
    """Along the positions of one seed, and along consecutive seeds."""
    if along == "positions":
        u = randomness.uniform([0, 0], (COUNT, 4)).numpy()
    else:
        seeds = np.zeros((COUNT, 2), np.int64)
        seeds[:, 0 if along == "first numbers" else 1] = np.arange(COUNT)
        u = randomness.uniform(seeds, (4,)).numpy()
    assert u.dtype == np.float32 and u.min() > 0 and u.max() < 1
    for column in u.T.astype(np.float64):
        # χ² of 100 equal bins: mean 99, standard deviation √198; one in a thousand is above 149.
        counts = np.bincount((column * 100).astype(int), minlength=100)
        assert np.sum((counts - COUNT / 100) ** 2) / (COUNT / 100) < 149
        # From one number to the next there is no correlation.
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 3.5 / np.sqrt(COUNT)
    between = np.corrcoef(u.T)[np.triu_indices(4, 1)]
    assert np.all(np.abs(between) < 3.5 / np.sqrt(COUNT))


def test_the_extremes_of_the_hash_are_inside_the_interval():
    """Of 2³² integers the least and the greatest give numbers that float32 tells from 0 and 1."""
    for integer in (0, 2**32 - 1):
        u = np.float32((np.float32(integer // 512) + np.float32(0.5)) / 2**23)
        assert 0 < u < 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 12, 64, 100, 1000, 4096])
def test_permutations_hold_every_number_once(n):
    rows = randomness.permutations(tf.constant([3, 4], tf.int64), 6, n).numpy()
    np.testing.assert_array_equal(np.sort(rows), np.tile(np.arange(n), (6, 1)))
    if n > 50:
        # Neither the identity nor a shift of it, and each another.
        assert (
            np.abs(np.corrcoef([np.arange(n), *rows])[np.triu_indices(7, 1)]) < 6 / n**0.5
        ).all()


def test_permutations_are_functions_of_the_seed_and_the_same_under_xla():
    seed = tf.constant([3, 4], tf.int64)
    for n in (90, 8):
        rows = randomness.permutations(seed, 4, n)
        compiled = tf.function(randomness.permutations, jit_compile=True)(seed, 4, n)
        np.testing.assert_array_equal(rows, compiled)
    rows = randomness.permutations(seed, 4, 90)
    assert (rows[0] != rows[1]).numpy().any()
    assert (rows != randomness.permutations(tf.constant([3, 5], tf.int64), 4, 90)).numpy().any()


def test_all_permutations_of_a_few_numbers_are_equally_likely():
    count = 48_000
    rows = randomness.permutations(tf.constant([3, 4], tf.int64), count, 4).numpy()
    _, counts = np.unique(rows, axis=0, return_counts=True)
    # χ² of 24 permutations: mean 23, standard deviation √46; one in a thousand is above 49.7.
    assert len(counts) == 24 and np.sum((counts - count / 24) ** 2) / (count / 24) < 49.7


@pytest.mark.parametrize(("n", "parts"), [(4, 2), (8, 2), (8, 4), (12, 4), (16, 4), (40, 4)])
def test_every_place_and_every_company_is_as_likely_as_any_other(n, parts):
    count = 40_000
    rows = randomness.permutations(tf.constant([3, 4], tf.int64), count, n).numpy()
    places = np.stack([(rows == value).mean(axis=0) for value in range(n)])
    np.testing.assert_allclose(places, 1 / n, atol=5 * (1 / n / count) ** 0.5)
    minibatch = np.argsort(rows, axis=1) // (n // parts)
    together = np.mean(minibatch[:, :, None] == minibatch[:, None], axis=0)
    likely = (n // parts - 1) / (n - 1)
    off_diagonal = together[np.triu_indices(n, 1)]
    np.testing.assert_allclose(off_diagonal, likely, atol=5 * (likely / count) ** 0.5)
