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


# Numbers in the observations that a network sees at once. Of images that is some hundred rows: a
# network's activations are many times as large, and a rollout may be of thousands of rows.
_NUMBERS_AT_ONCE = 2**23


def in_parts(function, observations):
    """function(observations) [B, ...], evaluated of one part of the rows after the other if many.

    Vectors go through at once, unless there are millions of them; memory is then that of one part.

    Args:
        function: (observations [P, ...]) → float32 [P, ...], each row a function of its own row.
        observations: a nest of [B, ...], B static.
    """
    leaves = tf.nest.flatten(observations)
    rows = leaves[0].shape[0]
    part = max(1, _NUMBERS_AT_ONCE // sum(leaf.shape[1:].num_elements() for leaf in leaves))
    if rows <= part:
        return function(observations)
    # As equal as they can be. The last one begins early, at rows that have been evaluated already.
    count = -(-rows // part)
    part = -(-rows // count)

    def evaluate(i):
        here = tf.minimum(i * part, rows - part) + tf.range(part)
        return function(tf.nest.map_structure(lambda x: tf.gather(x, here), observations))

    # One after the other outside XLA too, where a loop's steps are else ten at a time.
    parts = tf.map_fn(
        evaluate, tf.range(count), fn_output_signature=tf.float32, parallel_iterations=1
    )
    new_in_last = rows - (count - 1) * part
    before = tf.reshape(parts[:-1], [-1, *parts.shape[2:]])
    return tf.concat([before, parts[-1, part - new_in_last :]], axis=0)
