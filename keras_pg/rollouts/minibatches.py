"""From time-major rollouts to minibatches, with static shapes throughout."""

import tensorflow as tf


def flatten_time(rollout):
    """Every field [T, N, ...] as [B, ...], B = T·N."""
    return tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), rollout)


def shuffled_minibatches(data, *, seed, epochs, num_minibatches):
    """Minibatches that pass over the data `epochs` times, without replacement in each pass.

    Args:
        data: nest of tensors [B, ...]; `num_minibatches` divides B.
        seed: integer [2]; the same seed gives the same minibatches.
        epochs: passes over the data.
        num_minibatches: parts of each pass. A single part is the data itself, not shuffled.

    Returns:
        (count, minibatch): how many there are in all, and a function from an integer tensor
        0 ≤ i < count to a nest like `data` of [B / num_minibatches, ...].
    """
    if num_minibatches == 1:
        return epochs, lambda i: data
    batch_size = tf.nest.flatten(data)[0].shape[0]
    rows = tf.argsort(_random_keys(seed, (epochs, batch_size)), axis=-1)
    rows = tf.reshape(rows, (epochs * num_minibatches, batch_size // num_minibatches))
    return epochs * num_minibatches, lambda i: tf.nest.map_structure(
        lambda x: tf.gather(x, rows[i]), data
    )


def _random_keys(seed, shape):
    """Pseudo-random int64 in [0, 2³²), by hashing seed and position.

    TensorFlow's own stateless generators give other numbers under XLA than outside of it, and so a
    compiled agent would be another one than the same agent run eagerly. Integer arithmetic is the
    same everywhere. The hash is "lowbias32", a bijection of 32-bit integers with the bias of its
    output bits measured to be small (Wellons, hash-prospector, public domain).
    """
    keys = tf.range(shape[0] * shape[1])
    keys = tf.cast(keys, tf.uint32)
    for word in tf.unstack(tf.cast(seed, tf.uint32)):
        keys = _hash(keys ^ _hash(word + tf.constant(0x9E3779B9, tf.uint32)))
    return tf.reshape(tf.cast(keys, tf.int64), shape)


def _hash(x):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))) * tf.constant(
            factor, tf.uint32
        )
    return x
