"""Random numbers that are the same eagerly, in a graph and under XLA: functions of a seed.

TensorFlow's own stateless generators give other numbers under XLA than outside of it, and so a
compiled agent would be another one than the same agent run eagerly. Integer arithmetic is the same
everywhere. The hash is "lowbias32", a bijection of 32-bit integers with the bias of its output bits
measured to be small (Wellons, hash-prospector, public domain).
"""

import numpy as np
import tensorflow as tf


def bits(seed, shape):
    """Pseudo-random int64 in [0, 2³²), by hashing seed and position.

    Args:
        seed: integer [2].
        shape: of the result, with a static number of elements.
    """
    keys = tf.cast(tf.range(int(np.prod(shape))), tf.uint32)
    for word in tf.unstack(tf.cast(seed, tf.uint32)):
        keys = _hash(keys ^ _hash(word + tf.constant(0x9E3779B9, tf.uint32)))
    return tf.reshape(tf.cast(keys, tf.int64), shape)


def normal(seed, shape):
    """Standard normal float32 numbers, by the Box-Muller transform of `bits`."""
    # The centres of 2²³ equal parts of (0, 1): float32 holds each, and none is 0 or 1.
    integers = tf.cast(bits(seed, (2, *shape)) // 512, tf.float32)
    uniform = (integers + 0.5) / 2**23
    radius = tf.sqrt(-2.0 * tf.math.log(uniform[0]))
    return radius * tf.cos(2.0 * np.pi * uniform[1])


def _hash(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(
            factor, tf.uint32
        )
    return x
