"""Random numbers that are the same eagerly, in a graph and under XLA: functions of a seed.

TensorFlow's own stateless generators give other numbers under XLA than outside of it, and so a
compiled agent would be another one than the same agent run eagerly. Integer arithmetic is the same
everywhere. The hash is "lowbias32", a bijection of 32-bit integers with the bias of its output bits
measured to be small (Wellons, hash-prospector, public domain).
"""

import math

import numpy as np
import tensorflow as tf

# Two digits of fewer numbers do not make permutations that are even enough.
_FEWEST_TO_COMPUTE = 12


def bits(seed, shape):
    """Pseudo-random int64 in [0, 2³²), by hashing seed and position.

    Args:
        seed: integer [..., 2]; each pair of numbers is a seed of its own.
        shape: of the numbers that come of one seed.

    Returns:
        int64 [..., *shape].
    """
    return tf.cast(_keys(seed, shape), tf.int64)


def uniform(seed, shape):
    """Float32 numbers in the open interval (0, 1): neither 0 nor 1 is ever drawn."""
    # The centres of 2²³ equal parts: float32 holds each.
    integers = tf.cast(_shifted(_keys(seed, shape), 9), tf.int32)
    return (tf.cast(integers, tf.float32) + 0.5) / 2**23


def normal(seed, shape):
    """Standard normal float32 numbers, by the Box-Muller transform of uniform ones."""
    u, v = tf.unstack(uniform(seed, (*shape, 2)), axis=-1)
    return tf.sqrt(-2.0 * tf.math.log(u)) * tf.cos(2.0 * np.pi * v)


def permutations(seed, count, n):
    """Pseudo-random permutations of 0..n-1, int32 [count, n].

    Below 12 numbers their hashes are sorted, so that all permutations are equally likely. From 12
    on, where that is a hundred times as slow under XLA, each number is computed from its place
    alone, by a generalized Feistel network: written as two digits, of which in turn one is shifted
    by a hash of the other. All permutations are not equally likely then, but rows meet in
    minibatches as often as they should, to some thousandths even where n is 12.

    Args:
        seed: integer [2].
        count: how many.
        n: of how many numbers.

    Reference: Black and Rogaway, 2002, "Ciphers with arbitrary finite domains", section 5.

    >>> sorted(permutations([0, 1], 1, 5)[0].numpy().tolist())
    [0, 1, 2, 3, 4]
    """
    if n < _FEWEST_TO_COMPUTE:
        hashes = tf.reshape(bits(seed, (count * n,)), (count, n))
        return tf.argsort(hashes, stable=True)
    bases = _two_digits(n)
    high, low = (tf.constant(base, tf.uint32) for base in bases)
    keys = tf.cast(bits(seed, (8, count, 1)), tf.uint32)

    def shuffle(x):
        left, right = x // low, x % low
        for i, key in enumerate(tf.unstack(keys)):
            if i % 2 == 0:
                left = (left + _hash(right ^ key) % high) % high
            else:
                right = (right + _hash(left ^ key) % low) % low
        return left * low + right

    numbers = shuffle(tf.cast(tf.tile(tf.range(n)[None], (count, 1)), tf.uint32))
    if math.prod(bases) > n:
        # Two digits reach a little beyond n: a number that lands there is shuffled once more.
        bound = tf.constant(n, tf.uint32)
        (numbers,) = tf.while_loop(
            lambda x: tf.reduce_any(x >= bound),
            lambda x: (tf.where(x >= bound, shuffle(x), x),),
            (numbers,),
        )
    return tf.cast(numbers, tf.int32)


def _two_digits(n):
    """Two bases of about √n whose product is at least n, and as little above it as can be."""
    root = math.isqrt(n - 1) + 1
    bases = [(a, -(-n // a)) for a in range(root, 2 * root + 1)]
    # With a single digit there would be no shuffling but a shift.
    usable = [(a, b) for a, b in bases if b > 1] or bases
    return min(usable, key=lambda bases: bases[0] * bases[1])


def _keys(seed, shape):
    """The hashes as uint32. Only operations that LiteRT has as well."""
    keys = tf.cast(tf.range(tf.reduce_prod(shape)), tf.uint32)
    words = _hash(tf.cast(seed, tf.uint32) + tf.constant(0x9E3779B9, tf.uint32))
    for i in range(2):
        keys = _hash(keys ^ words[..., i, None])
    return tf.reshape(keys, tf.concat([tf.shape(seed)[:-1], shape], axis=0))


def _hash(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ _shifted(x, shift)) * tf.constant(factor, tf.uint32)
    return x ^ _shifted(x, 16)


def _shifted(x, count):
    return tf.bitwise.right_shift(x, tf.constant(count, tf.uint32))
