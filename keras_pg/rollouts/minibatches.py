"""From time-major rollouts to minibatches, with static shapes throughout."""

import tensorflow as tf

from keras_pg import randomness


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
            rows = randomness.permutations(seed, epochs, batch_size)
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
        rows = tf.nest.map_structure(lambda x: tf.gather(x, self._rows[i]), tuple(batch))
        return (*rows, *(x[i] for x in split))
