"""Surrogate objectives, value losses and KL estimators: pure functions of rank-1 tensors.

Each gives one number for each of the B rows of a (mini)batch. A mean over the rows that count is
`masked_mean`, or `weighted_mean` where the weights of the rows are known beforehand.
"""

import tensorflow as tf

# exp(20) is 5e8: far outside any trust region, far inside float32.
MAX_LOG_RATIO = 20.0


def check_rank_one(**tensors):
    """[B] against [B, 1] would broadcast to [B, B] without a word: refuse it."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"Expected tensors of one shape [B], received {shapes}.")


def masked_mean(x, mask):
    """Mean of `x` [B] over the rows where `mask` [B] is True; 0 if there are none.

    >>> import tensorflow as tf
    >>> float(masked_mean(tf.constant([1.0, 3.0, 1e9]), tf.constant([True, True, False])))
    2.0
    """
    check_rank_one(x=x, mask=mask)
    x = tf.where(mask, x, tf.zeros_like(x))
    return tf.math.divide_no_nan(tf.reduce_sum(x), tf.reduce_sum(tf.cast(mask, x.dtype)))


def mean_weights(mask):
    """The weights w of a mean over the rows where `mask` is True, w = m / Σ m.

    Args:
        mask: bool [..., B].

    Returns:
        float32 [..., B], of sum 1 over the last axis; all 0 where no row counts.
    """
    weights = tf.cast(mask, tf.float32)
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))


def weighted_mean(x, weights):
    """Σ w x over the last axis. Rows of weight 0 may hold anything, NaN included.

    Args:
        x: float [..., B].
        weights: float [B], from `mean_weights`.

    Returns:
        float [...].

    >>> import tensorflow as tf
    >>> weights = mean_weights(tf.constant([True, True, False]))
    >>> float(weighted_mean(tf.constant([1.0, 3.0, 1e9]), weights))
    2.0
    """
    check_rank_one(x=x[0] if x.shape.rank > 1 else x, weights=weights)
    return tf.reduce_sum(tf.where(weights > 0, x, tf.zeros_like(x)) * weights, axis=-1)


def varies(x, mask):
    """Whether the rows of `x` where `mask` is True differ at all, [..., B] → bool [..., 1].

    Their variance cannot tell: rounding in the mean gives equal rows a variance above 0.
    """
    infinity = tf.constant(float("inf"), x.dtype)
    largest = tf.reduce_max(tf.where(mask, x, -infinity), axis=-1, keepdims=True)
    smallest = tf.reduce_min(tf.where(mask, x, infinity), axis=-1, keepdims=True)
    return largest > smallest


def probability_ratio(log_probs, old_log_probs):
    """R = π(a|s) / π_old(a|s), and log r, with log r bounded to ±20 so that r stays finite.

    Args:
        log_probs: float [B], log π(a|s), summed over action dimensions.
        old_log_probs: float [B], the same under the policy that collected; a constant.

    Returns:
        (r, log r), each float [B].
    """
    check_rank_one(log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = tf.clip_by_value(
        log_probs - tf.stop_gradient(old_log_probs), -MAX_LOG_RATIO, MAX_LOG_RATIO
    )
    return tf.exp(log_ratio), log_ratio


def policy_gradient(log_probs, advantages):
    """The score-function surrogate, as a loss.

        L = -Ψ log π(a|s)

    Args:
        log_probs: float [B], log π(a|s).
        advantages: float [B], Ψ; a constant.

    Returns:
        float [B]. The gradient of its mean is minus the policy gradient E[Ψ ∇ log π].

    Reference: Williams, 1992, "Simple statistical gradient-following algorithms", eq. 11.
    """
    check_rank_one(log_probs=log_probs, advantages=advantages)
    return -log_probs * tf.stop_gradient(advantages)


def surrogate(ratio, advantages):
    """The importance-weighted surrogate of a trust region, as a loss: L = -r Â.

    Args and Returns: as in `clipped_surrogate`.

    Reference: Schulman et al., 2015, arXiv:1502.05477, eq. 14.
    """
    check_rank_one(ratio=ratio, advantages=advantages)
    return -ratio * tf.stop_gradient(advantages)


def clipped_surrogate(ratio, advantages, clip_ratio, clip_ratio_high=None):
    """PPO's pessimistic surrogate, as a loss (negated objective).

        L = -min(r Â, clip(r, 1-ε, 1+ε') Â)

    Args:
        ratio: float [B], r = π(a|s) / π_old(a|s).
        advantages: float [B], Â; a constant.
        clip_ratio: ε > 0.
        clip_ratio_high: ε' > 0; None for ε.

    Returns:
        float [B]. At r = 1 the gradient of its mean is minus the policy gradient E[Â ∇ log π].

    Example:
    >>> import tensorflow as tf
    >>> ratio, advantages = tf.constant([1.5, 0.5]), tf.constant([1.0, -1.0])
    >>> clipped_surrogate(ratio, advantages, 0.2)
    <tf.Tensor: shape=(2,), dtype=float32, numpy=array([-1.2,  0.8], dtype=float32)>

    Reference: Schulman et al., 2017, arXiv:1707.06347, eq. 7.
    """
    check_rank_one(ratio=ratio, advantages=advantages)
    advantages = tf.stop_gradient(advantages)
    high = clip_ratio if clip_ratio_high is None else clip_ratio_high
    clipped_ratio = tf.clip_by_value(ratio, 1.0 - clip_ratio, 1.0 + high)
    return -tf.minimum(ratio * advantages, clipped_ratio * advantages)


def squared_error(values, targets):
    """(V(s) - target)², targets held constant. Arguments and result [B]."""
    check_rank_one(values=values, targets=targets)
    return tf.square(values - tf.stop_gradient(targets))


def clipped_squared_error(values, old_values, targets, value_clip):
    """Squared error that takes the worse of the new value and the new value kept near the old.

        L = max( (V - R)², (V_old + clip(V - V_old, ±c) - R)² )

    Args:
        values, old_values, targets: float [B]; the last two constant.
        value_clip: c > 0, in units of the return.

    Returns:
        float [B].

    Reference: the value clipping of OpenAI baselines' ppo2 (not in the paper).
    """
    check_rank_one(values=values, old_values=old_values, targets=targets)
    old_values, targets = tf.stop_gradient(old_values), tf.stop_gradient(targets)
    near_values = old_values + tf.clip_by_value(values - old_values, -value_clip, value_clip)
    return tf.maximum(tf.square(values - targets), tf.square(near_values - targets))


def kl_k1(log_ratio):
    """k1 estimate of KL(p ‖ q) from actions drawn by p: k1 = -log r, r = q(a) / p(a).

    Unbiased, of either sign, and of high variance. As a loss for p its gradient is zero in the mean
    (E[∇ log p] = 0); it belongs in the reward, where it gives the gradient of KL(p ‖ q).

    Args and Reference: as in `kl_k3`.
    """
    return -log_ratio


def kl_k2(log_ratio):
    """k2 estimate of KL(p ‖ q) from actions drawn by p: k2 = (log r)² / 2, r = q(a) / p(a).

    Biased, never negative. As a loss for p, with actions drawn by p, its gradient is that of
    KL(p ‖ q) in the mean.

    Args and Reference: as in `kl_k3`.
    """
    return 0.5 * tf.square(log_ratio)


def kl_k3(log_ratio):
    """k3 estimate of KL(p ‖ q) from actions drawn by p.

        k3 = (r - 1) - log r,   r = q(a|s) / p(a|s)

    As a loss for q its gradient is that of KL(p ‖ q) in the mean. As a loss for p, with actions
    drawn by p, it is that of KL(q ‖ p), the other way round; multiplied by the ratio p / p_old of
    the policy that is learnt to the one that drew the actions it is that of KL(p ‖ q).

    Args:
        log_ratio: float [B], log r.

    Returns:
        float [B], ≥ 0 in each row; its mean over a ~ p is the KL divergence.

    Reference: Schulman, 2020, "Approximating KL divergence".
    """
    return tf.math.expm1(log_ratio) - log_ratio


def explained_variance(values, returns, mask):
    """1 - Var[returns - values] / Var[returns]: 1 is a perfect critic, 0 a constant one.

    Args:
        values, returns: float [B].
        mask: bool [B].

    Returns:
        Scalar; 0 where the returns do not vary.
    """
    check_rank_one(values=values, returns=returns, mask=mask)

    def variance(x):
        return masked_mean(tf.square(x - masked_mean(x, mask)), mask)

    unexplained, total = variance(returns - values), variance(returns)
    explained = 1.0 - tf.math.divide_no_nan(unexplained, total)
    return tf.where(varies(returns, mask)[0], explained, tf.zeros_like(explained))
