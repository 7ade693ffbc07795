"""From time-major rollouts to minibatches, with static shapes throughout."""

import tensorflow as tf


def flatten_time(rollout):
    """Every field [T, N, ...] as [B, ...], B = T·N."""
    return tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), rollout)


class Minibatches:
    """Passes over the B rows of a batch in equal parts, without replacement in each pass.

    Args:
        batch_size: B.
        seed: integer [2]; the same seed gives the same minibatches.
        epochs: passes over the rows.
        num_minibatches: parts of each pass; it divides B. A single part is the batch itself, not
            shuffled.

    Attributes:
        count: minibatches in all passes together.
    """

    def __init__(self, batch_size, *, seed, epochs, num_minibatches):
        self.count = epochs * num_minibatches
        self._rows = None
        if num_minibatches > 1:
            rows = tf.argsort(_random_keys(seed, (epochs, batch_size)), axis=-1)
            self._rows = tf.reshape(rows, (self.count, batch_size // num_minibatches))

    def split(self, x):
        """All minibatches of `x` [B, ...] at once: [K, B / num_minibatches, ...].

        K is `count`, or 1 where every minibatch is the batch itself.
        """
        return x[None] if self._rows is None else tf.gather(x, self._rows)

    def __call__(self, i, batch, split=()):
        """Minibatch 0 ≤ i < count: rows of `batch`, [B, ...] each, and parts that `split` made."""
        if self._rows is None:
            return (*batch, *(x[0] for x in split))
        return (*(tf.gather(x, self._rows[i]) for x in batch), *(x[i] for x in split))


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
