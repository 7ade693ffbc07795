"""Advantage estimators Ψ_t: pure functions, time-major [T, N], no gradient.

T steps, N environments. `terminated` and `truncated` are two flags: a time limit cuts the trace but
still bootstraps from the value of the final observation, a termination does neither.
"""

import tensorflow as tf

from keras_pg.losses import varies


def gae(rewards, values, next_values, terminated, truncated, *, gamma, gae_lambda, valid=None):
    """Generalized advantage estimation.

        δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t)
        Â_t = δ_t + γ λ (1 - done_t) Â_{t+1},   done = terminated or truncated

    Args:
        rewards: float [T, N], r_t for T steps of N environments.
        values: float [T, N], V(s_t).
        next_values: float [T, N], V of the successor *before* any reset.
        terminated: bool [T, N], the episode ended in a terminal state.
        truncated: bool [T, N], the episode was cut; with `terminated`, termination wins.
        gamma: discount γ in [0, 1].
        gae_lambda: trace decay λ in [0, 1]. 0 is the TD residual, 1 the return minus V.
        valid: bool [T, N] or None. Rows that are no transition (the step in which a Gymnasium
            environment in NEXT_STEP mode resets itself) get advantage 0.

    Returns:
        Advantages, float [T, N]. Value targets are `advantages + values`.

    Raises:
        ValueError: the arguments are not all [T, N].

    Example, a time limit after the second of three steps:

    >>> import tensorflow as tf
    >>> column = lambda *x: tf.constant(x)[:, None]
    >>> advantages = gae(column(1., 1., 1.), column(.5, .4, .3), column(.4, 2., .7),
    ...                  column(False, False, False), column(False, True, False),
    ...                  gamma=0.9, gae_lambda=0.8)
    >>> [round(float(a), 4) for a in advantages[:, 0]]
    [2.588, 2.4, 1.33]

    Reference: Schulman et al., 2016, arXiv:1506.02438, eq. 16.
    """
    inputs = (rewards, values, next_values, terminated, truncated)
    shapes = [tuple(x.shape) for x in (*inputs, *(() if valid is None else (valid,)))]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"gae expects arguments of one shape [T, N], received shapes {shapes}.")
    rewards, values, next_values = (tf.convert_to_tensor(x) for x in inputs[:3])
    not_terminated = tf.cast(tf.logical_not(terminated), rewards.dtype)
    not_done = tf.cast(tf.logical_not(tf.logical_or(terminated, truncated)), rewards.dtype)

    deltas = rewards + gamma * not_terminated * next_values - values
    if valid is not None:
        deltas = tf.where(valid, deltas, tf.zeros_like(deltas))
        # An invalid row follows an end of episode, so no trace reaches across it.
        not_done = tf.where(valid, not_done, tf.zeros_like(not_done))
    decays = gamma * gae_lambda * not_done
    advantages = tf.scan(
        lambda advantage, step: step[0] + step[1] * advantage,
        (deltas, decays),
        initializer=tf.zeros_like(rewards[0]),
        reverse=True,
    )
    return tf.stop_gradient(advantages)


def normalize(advantages, mask):
    """Standardizes advantages over the rows where `mask` is True.

        Â ← (Â - mean) / (std + 1e-8)

    Args:
        advantages: float [B], or [K, B] for K minibatches, each on its own.
        mask: bool, of the same shape.

    Returns:
        float, of the same shape. Zeros where `mask` is False. A single valid row is returned
        unchanged (its own mean would erase it); equal rows become exact zeros.

    Raises:
        ValueError: the arguments have other shapes, or the shape [K, 1]: in a minibatch of one row
            there is nothing to normalize, and more likely [B, 1] was meant to be [B].
    """
    shape, mask_shape = tuple(advantages.shape), tuple(mask.shape)
    if shape != mask_shape or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] == 1):
        raise ValueError(
            "normalize expects advantages and mask of one shape, [B] or [K, B] with B > 1, "
            f"received {shape} and {mask_shape}."
        )
    weights = tf.cast(mask, advantages.dtype)
    advantages = tf.where(mask, advantages, tf.zeros_like(advantages))
    count = tf.reduce_sum(weights, axis=-1, keepdims=True)

    def mean(x):
        return tf.math.divide_no_nan(tf.reduce_sum(x, axis=-1, keepdims=True), count)

    centred = tf.where(mask, advantages - mean(advantages), tf.zeros_like(advantages))
    std = tf.sqrt(mean(tf.square(centred)))
    normalized = tf.where(
        varies(advantages, mask), centred / (std + 1e-8), tf.zeros_like(advantages)
    )
    return tf.where(count > 1.0, normalized, advantages)
