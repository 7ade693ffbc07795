"""Returns and advantages of rollouts: pure functions, time-major [T, N], no gradient.

T steps, N environments. `terminated` and `truncated` are two flags: a time limit cuts the trace but
still bootstraps from the value of the final observation, a termination does neither. The end of
the rollout is a cut like any other.
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
    deltas, not_done = _residuals(
        rewards, values, next_values, terminated, truncated, gamma=gamma, valid=valid
    )
    return tf.stop_gradient(_sum_along_trace(deltas, gamma * gae_lambda * not_done))


def n_step(rewards, values, next_values, terminated, truncated, *, gamma, n, valid=None):
    """The n-step advantage, sooner cut where the episode or the rollout ends.

        Â_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) - V(s_t) = Σ_{k<n} γ^k δ_{t+k}

    Args:
        n: how many rewards are taken from the rollout before V takes over; 1 is the TD residual,
            T or more is GAE with λ = 1.
        others: as in `gae`.

    Returns:
        Advantages, float [T, N].

    Reference: Schulman et al., 2016, arXiv:1506.02438, eq. 11 to 14.
    """
    deltas, not_done = _residuals(
        rewards, values, next_values, terminated, truncated, gamma=gamma, valid=valid
    )
    decays = gamma * not_done
    steps_left = min(n, deltas.shape[0]) - 1

    def one_more(k, advantages):
        later = tf.concat([advantages[1:], tf.zeros_like(advantages[:1])], axis=0)
        return k + 1, deltas + decays * later

    _, advantages = tf.while_loop(lambda k, _: k < steps_left, one_more, (0, deltas))
    return tf.stop_gradient(advantages)


def reward_to_go(rewards, next_values, terminated, truncated, *, gamma, valid=None):
    """The discounted return from each step on.

        G_t = r_t + γ (1 - done_t) G_{t+1} + γ [cut_t and not terminated_t] V(s_{t+1})

    where a step is cut by a time limit or by the end of the rollout.

    Args:
        next_values: float [T, N], V(s_{t+1}); zeros for no bootstrap.
        others: as in `gae`.

    Returns:
        Float [T, N].

    Reference: Sutton and Barto, 2018, "Reinforcement Learning", 2nd edition, section 3.3.
    """
    last = tf.range(rewards.shape[0])[:, None] == rewards.shape[0] - 1
    bootstraps = tf.where(tf.logical_or(truncated, last), next_values, tf.zeros_like(next_values))
    # With V = 0 inside the episode, the residuals are the rewards, and their sum the return.
    deltas, not_done = _residuals(
        rewards,
        tf.zeros_like(rewards),
        bootstraps,
        terminated,
        truncated,
        gamma=gamma,
        valid=valid,
    )
    return tf.stop_gradient(_sum_along_trace(deltas, gamma * not_done))


def total_return(rewards, next_values, terminated, truncated, *, gamma, valid=None):
    """The return of the whole episode, the same for each of its steps: G of its first step.

    Of an episode that began before the rollout it is the return of the part within the rollout,
    discounted from the first step of that part. Earlier rewards depend on no action in the rollout.

    Args and Returns: as in `reward_to_go`.

    Reference: Williams, 1992, "Simple statistical gradient-following algorithms", section 3.
    """
    returns = reward_to_go(rewards, next_values, terminated, truncated, gamma=gamma, valid=valid)
    return first_of_episode(returns, terminated, truncated, valid)


def group_advantages(returns, group_size, scale="group"):
    """How much better an episode went than the others of its group, which began alike.

        Â_i = (R_i - mean(R_group)) / (σ + 1e-4)

    Args:
        returns: float [N], of N episodes; a group is `group_size` in a row.
        group_size: G ≥ 2; it divides N.
        scale: what σ is: the "group"'s own standard deviation (with G - 1 in the denominator), that
            of the returns of the whole "batch", or None to divide by nothing.

    Returns:
        float [N]; exactly 0 for the episodes of a group whose returns are all equal.

    Raises:
        ValueError: group_size is below 2.

    References: Shao et al., 2024, arXiv:2402.03300, section 4.1.2; Liu et al., 2025,
    arXiv:2503.20783, section 3.2 (why to divide by nothing).

    >>> import tensorflow as tf
    >>> group_advantages(tf.constant([1.0, 3.0, 5.0, 5.0]), 2, scale=None)
    <tf.Tensor: shape=(4,), dtype=float32, numpy=array([-1.,  1.,  0.,  0.], dtype=float32)>
    """
    if group_size < 2:
        raise ValueError(f"A group is of at least 2 episodes, received group_size={group_size}.")
    groups = tf.reshape(returns, (-1, group_size))
    centred = groups - tf.reduce_mean(groups, axis=-1, keepdims=True)
    # Rounding in the mean would leave equal returns a little apart from it.
    centred = tf.where(varies(groups, tf.ones_like(groups, tf.bool)), centred, 0.0)
    if scale == "group":
        squares = tf.reduce_sum(tf.square(centred), axis=-1, keepdims=True)
        centred /= tf.sqrt(squares / (group_size - 1)) + 1e-4
    elif scale == "batch":
        deviations = returns - tf.reduce_mean(returns)
        squares = tf.reduce_sum(tf.square(deviations))
        centred /= tf.sqrt(squares / (returns.shape[0] - 1)) + 1e-4
    return tf.stop_gradient(tf.reshape(centred, [-1]))


def first_of_episode(x, terminated, truncated, valid=None):
    """For each step, `x` [T, N] at the first step of the same episode within the rollout."""
    over = tf.logical_or(terminated, truncated)
    if valid is not None:
        # What follows a row that is no transition is a first step, whatever that row says.
        over = tf.logical_or(over, tf.logical_not(valid))
    first = tf.concat([tf.ones_like(over[:1]), over[:-1]], axis=0)
    return tf.scan(
        lambda carried, step: tf.where(step[0], step[1], carried),
        (first, x),
        initializer=tf.zeros_like(x[0]),
    )


def _residuals(rewards, values, next_values, terminated, truncated, *, gamma, valid):
    """δ_t [T, N], and [T, N] whether the episode goes on after step t, as a float."""
    inputs = (rewards, values, next_values, terminated, truncated)
    shapes = [tuple(x.shape) for x in (*inputs, *(() if valid is None else (valid,)))]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"Expected arguments of one shape [T, N], received shapes {shapes}.")
    rewards, values, next_values = (tf.convert_to_tensor(x) for x in inputs[:3])
    not_terminated = tf.cast(tf.logical_not(terminated), rewards.dtype)
    not_done = tf.cast(tf.logical_not(tf.logical_or(terminated, truncated)), rewards.dtype)
    deltas = rewards + gamma * not_terminated * next_values - values
    if valid is not None:
        deltas = tf.where(valid, deltas, tf.zeros_like(deltas))
        # An invalid row follows an end of episode, so no trace reaches across it.
        not_done = tf.where(valid, not_done, tf.zeros_like(not_done))
    return deltas, not_done


def _sum_along_trace(x, decays):
    """y_t = x_t + decay_t y_{t+1}, [T, N]."""
    return tf.scan(
        lambda later, step: step[0] + step[1] * later,
        (x, decays),
        initializer=tf.zeros_like(x[0]),
        reverse=True,
    )


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
    # Nothing to learn where all are equal; but what is not finite must not pass for equal.
    usable = varies(advantages, mask) | tf.logical_not(tf.math.is_finite(std))
    normalized = tf.where(usable, centred / (std + 1e-8), tf.zeros_like(advantages))
    return tf.where(count > 1.0, normalized, advantages)
