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
    keys = tf.random.stateless_uniform((epochs, batch_size), seed)
    rows = tf.argsort(keys, axis=-1)
    rows = tf.reshape(rows, (epochs * num_minibatches, batch_size // num_minibatches))
    return epochs * num_minibatches, lambda i: tf.nest.map_structure(
        lambda x: tf.gather(x, rows[i]), data
    )
