"""Action distributions: what a policy network's output means for an action space.

A policy network maps observations to a matrix of *parameters* [B, P]. An action distribution says
what they mean: log-probabilities, entropy, KL divergence, samples. Two kinds of action are kept
apart:

- the *raw* action is the sample itself, stored in rollouts and scored by `log_prob`;
- the *env-ready* action is what `to_env` makes of it (scaled, clipped, squashed or shifted into the
  space).

A sample is a pure function of parameters and standard noise, so NumPy, TensorFlow and LiteRT can
draw the noise each in their own way and share everything else. Zero noise gives the mode. In a
rollout noise is the same for `held_steps` steps. An actor has a variable of `log_std_shape` beside
its network, where that is not None.
"""

import gymnasium
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_pg import randomness
from keras_pg.spaces import check_action_space

tfd = tfp.distributions

LOG_STD_RANGE = (-20.0, 2.0)


def _expected_log_one_minus_tanh_squared(mean, std):
    """E[log(1 - tanh² u)], u ~ N(mean, std²), elementwise, float32.

    It is 2 (log 2 - E|u| - E[log(1 + exp(-2|u|))]), where E|u| has a closed form. Narrow Gaussians
    are integrated over by Gauss-Hermite quadrature, wide ones over that last function, which is
    nearly 0 beyond |u| = 9, by Gauss-Legendre quadrature. The error of either is below 1e-8 where
    it is used, beside the rounding of float32.
    """
    narrow, wide = tf.minimum(std, _WIDE), tf.maximum(std, _WIDE)
    u = mean[..., None] + narrow[..., None] * _HERMITE[0]
    of_narrow = tf.reduce_sum(_log_one_minus_tanh_squared(u) * _HERMITE[1], axis=-1)
    nodes, weights = _LEGENDRE
    density = sum(
        tf.exp(-0.5 * tf.square((sign * nodes - mean[..., None]) / wide[..., None]))
        for sign in (-1, 1)
    )
    density /= wide[..., None] * np.float32(np.sqrt(2 * np.pi))
    near_zero = tf.reduce_sum(weights * np.log1p(np.exp(-2 * nodes)) * density, axis=-1)
    z = mean / wide
    absolute = wide * np.float32(np.sqrt(2 / np.pi)) * tf.exp(-0.5 * tf.square(z))
    absolute += mean * tf.math.erf(z * np.float32(np.sqrt(0.5)))
    of_wide = 2.0 * (np.float32(np.log(2.0)) - absolute - near_zero)
    return tf.where(std < _WIDE, of_narrow, of_wide)


def _log_one_minus_tanh_squared(u):
    """Log(1 - tanh² u) = 2 (log 2 - u - softplus(-2u)), finite for every u."""
    return 2.0 * (np.log(2.0) - u - tf.math.softplus(-2.0 * u))


# Above this deviation the one quadrature, below it the other.
_WIDE = 0.5
# Nodes and weights of ∫ f(x) N(x; 0, 1) dx ≈ Σ w f(x), and of the integral from 0 to 9.
_HERMITE = np.polynomial.hermite_e.hermegauss(32)
_HERMITE = np.float32(_HERMITE[0]), np.float32(_HERMITE[1] / _HERMITE[1].sum())
_LEGENDRE = np.polynomial.legendre.leggauss(32)
_LEGENDRE = np.float32(4.5 * (_LEGENDRE[0] + 1.0)), np.float32(4.5 * _LEGENDRE[1])


def box_units(space):
    """(centre, half width) of each dimension of a Box: the units in which policies see its actions.

    They are 0 and 1 where a bound is infinite or is beyond 2²⁴, or where both are the same.

    Args:
        space: a Box.

    Returns:
        Two float32 arrays of its shape.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    # Limits of a type are no bounds, but the want of them.
    bounded = (abs(low) <= 2**24) & (abs(high) <= 2**24) & (high > low)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return ((high + low) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


class _ActionDistribution:
    """What a distribution is unless it says otherwise."""

    held_steps, log_std_shape = 1, None

    def draws(self, num_steps):
        """How often noise is drawn for a rollout of T steps, ⌈T / held_steps⌉."""
        return -(-num_steps // self.held_steps)


class _ScoredByTFP(_ActionDistribution):
    """Log-probability, entropy and KL divergence of raw actions, as `distribution` has them."""

    def log_prob(self, parameters, actions):
        """Log π(a|s) [B] of raw actions [B, ...], summed over their dimensions."""
        return self.distribution(parameters).log_prob(actions)

    def entropy(self, parameters):
        """Entropy of the raw action, in nats, summed over its dimensions, [B]."""
        return self.distribution(parameters).entropy()

    def kl_divergence(self, *, p, q):
        """KL(p ‖ q) of two parameter matrices, summed over dimensions, [B]."""
        return tfd.kl_divergence(self.distribution(p), self.distribution(q))


def _softmax_and_finite_log(logits):
    """Probabilities, and their logarithms where they are not 0, both with finite derivatives."""
    probabilities, log_probs = tf.nn.softmax(logits), tf.nn.log_softmax(logits)
    return probabilities, tf.where(probabilities > 0, log_probs, tf.zeros_like(log_probs))


class Categorical(_ActionDistribution):
    """Actions of a Discrete space; parameters are the logits [B, n].

    Raw actions are integers [B] in 0..n-1; env-ready actions add the space's `start`.
    Noise is standard Gumbel [B, n]: argmax(logits + noise) is an exact sample.

    Example:
    >>> import gymnasium, numpy as np
    >>> categorical = Categorical(gymnasium.spaces.Discrete(2, start=10))
    >>> logits = np.log(np.array([[0.25, 0.75]], "float32"))
    >>> int(categorical.to_env(categorical.mode(logits))[0])
    11
    >>> round(float(categorical.entropy(logits)[0]), 4)
    0.5623
    """

    def __init__(self, space):
        self.start, self.dtype = int(space.start), space.dtype
        self.state_dependent_size = self.parameter_size = self.noise_size = int(space.n)
        self.action_shape, self.action_dtype = (), tf.int64

    def distribution(self, parameters):
        """The TFP distribution over raw actions."""
        return tfd.Categorical(logits=parameters)

    def log_prob(self, parameters, actions):
        """Log π(a|s) [B] of raw actions [B]."""
        # TFP's takes an operation that LiteRT has not, and under XLA more time with the entropy.
        taken = tf.one_hot(actions, self.parameter_size, on_value=True, off_value=False)
        log_probs = tf.nn.log_softmax(parameters)
        return tf.reduce_sum(tf.where(taken, log_probs, tf.zeros_like(log_probs)), axis=-1)

    def entropy(self, parameters):
        """-Σ π log π, in nats, [B]."""
        probabilities, log_probs = _softmax_and_finite_log(parameters)
        return -tf.reduce_sum(probabilities * log_probs, axis=-1)

    def kl_divergence(self, *, p, q):
        """Σ π_p (log π_p - log π_q) of two matrices of logits, [B]."""
        probabilities, log_probs = _softmax_and_finite_log(p)
        others = tf.nn.log_softmax(q)
        # What p never takes counts nothing, even where q never takes it either.
        others = tf.where(probabilities > 0, others, tf.zeros_like(others))
        return tf.reduce_sum(probabilities * (log_probs - others), axis=-1)

    def fisher_product(self, parameters, tangents):
        """F v [B, n] in logits, F = diag(π) - π πᵀ: the covariance of the score of one action."""
        probabilities = tf.nn.softmax(parameters)
        mean = tf.reduce_sum(probabilities * tangents, axis=-1, keepdims=True)
        return probabilities * (tangents - mean)

    def draw_noise(self, rng, shape):
        """Standard Gumbel noise [*shape, n] from a NumPy generator."""
        exponential = rng.standard_exponential((*shape, self.noise_size), dtype=np.float32)
        # NumPy draws an exact 0 about once in 7 million.
        return -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))

    def stateless_noise(self, seeds):
        """Standard Gumbel noise [B, n], a row being a function of its seed in `seeds` [B, 2]."""
        uniform = randomness.uniform(seeds, (self.noise_size,))
        return -tf.math.log(-tf.math.log(uniform))

    def sample(self, parameters, noise):
        """Raw actions [B]; the mode where the noise is zero."""
        return tf.argmax(parameters + noise, axis=-1)

    def mode(self, parameters):
        """The most probable raw action [B], the first of equals."""
        return tf.argmax(parameters, axis=-1)

    def to_env(self, actions):
        """Actions of the space, in its dtype, [B]."""
        return tf.cast(actions + self.start if self.start else actions, self.dtype)

    def describe(self, parameters):
        """Named tensors that describe the policy to whoever is served by it."""
        return {"probabilities": tf.nn.softmax(parameters)}


class MultiCategorical(_ActionDistribution):
    """Actions of a MultiDiscrete space: independent categoricals, one a component.

    Parameters [B, Σ n_i] are the components' logits, one after the other. Raw actions are integers
    [B, C], each counted from 0; env-ready actions add the space's `start`. Noise is standard
    Gumbel [B, Σ n_i]. Log-probability, entropy and KL divergence are sums over components.

    Example:
    >>> import gymnasium, numpy as np
    >>> policy = MultiCategorical(gymnasium.spaces.MultiDiscrete([2, 3]))
    >>> logits = np.array([[0.0, 1.0, 3.0, 0.0, 0.0]], "float32")
    >>> policy.mode(logits).numpy().tolist()
    [[1, 0]]
    """

    def __init__(self, space):
        self.start, self.dtype = space.start, space.dtype
        self.sizes = [int(n) for n in space.nvec]
        self.components = [Categorical(gymnasium.spaces.Discrete(n)) for n in self.sizes]
        self.state_dependent_size = self.parameter_size = self.noise_size = sum(self.sizes)
        self.action_shape, self.action_dtype = space.shape, tf.int64

    def _split(self, parameters):
        """(Component, its logits [B, n_i]) of all components."""
        logits = tf.split(parameters, self.sizes, axis=-1)
        return zip(self.components, logits, strict=True)

    def distribution(self, parameters):
        """The TFP distribution over raw actions."""
        return tfd.Blockwise([c.distribution(logits) for c, logits in self._split(parameters)])

    def log_prob(self, parameters, actions):
        """Σ log π_i(a_i|s) [B] of raw actions [B, C]."""
        each = enumerate(self._split(parameters))
        return tf.add_n([c.log_prob(logits, actions[..., i]) for i, (c, logits) in each])

    def entropy(self, parameters):
        """Entropy in nats, summed over components, [B]."""
        return tf.add_n([c.entropy(logits) for c, logits in self._split(parameters)])

    def kl_divergence(self, *, p, q):
        """KL(p ‖ q) of two parameter matrices, summed over components, [B]."""
        each = zip(self._split(p), self._split(q), strict=True)
        return tf.add_n([c.kl_divergence(p=p, q=q) for (c, p), (_, q) in each])

    def fisher_product(self, parameters, tangents):
        """F v [B, Σ n_i] in logits: F is block-diagonal, with the blocks of the categoricals."""
        each = zip(self._split(parameters), self._split(tangents), strict=True)
        return tf.concat([c.fisher_product(logits, v) for (c, logits), (_, v) in each], axis=-1)

    draw_noise = Categorical.draw_noise
    stateless_noise = Categorical.stateless_noise

    def sample(self, parameters, noise):
        """Raw actions [B, C]; the mode where the noise is zero."""
        return self.mode(parameters + noise)

    def mode(self, parameters):
        """The most probable raw action [B, C]."""
        return tf.stack([c.mode(logits) for c, logits in self._split(parameters)], axis=-1)

    def to_env(self, actions):
        """Actions of the space, in its dtype, [B, C]."""
        return tf.cast(actions + self.start if np.any(self.start) else actions, self.dtype)

    def describe(self, parameters):
        """Named tensors that describe the policy to whoever is served by it."""
        each = [tf.nn.softmax(logits) for _, logits in self._split(parameters)]
        return {"probabilities": tf.concat(each, axis=-1)}


class Bernoulli(_ScoredByTFP):
    """Actions of a MultiBinary space of rank 1: independent bits; parameters are the logits [B, n].

    Raw actions are the bits, integers [B, n]. Noise is standard logistic [B, n]: logits + noise is
    positive with the probability of a 1. The mode has a 0 where both are as probable.

    Example:
    >>> import gymnasium, numpy as np
    >>> policy = Bernoulli(gymnasium.spaces.MultiBinary(2))
    >>> policy.mode(np.array([[2.0, -1.0]], "float32")).numpy().tolist()
    [[1, 0]]
    """

    def __init__(self, space):
        self.dtype = space.dtype
        self.action_shape, self.action_dtype = space.shape, tf.int64
        self.state_dependent_size = self.parameter_size = self.noise_size = space.shape[0]

    def distribution(self, parameters):
        """The TFP distribution over raw actions."""
        return tfd.Independent(tfd.Bernoulli(logits=parameters), reinterpreted_batch_ndims=1)

    def fisher_product(self, parameters, tangents):
        """F v [B, n] in logits, F = diag(π (1 - π))."""
        return tf.sigmoid(parameters) * tf.sigmoid(-parameters) * tangents

    def draw_noise(self, rng, shape):
        """Standard logistic noise [*shape, n] from a NumPy generator."""
        uniform = rng.random((*shape, self.noise_size), dtype=np.float32)
        # NumPy draws an exact 0 once in 17 million.
        uniform = np.maximum(uniform, np.finfo(np.float32).tiny)
        return np.log(uniform) - np.log1p(-uniform)

    def stateless_noise(self, seeds):
        """Standard logistic noise [B, n], a row being a function of its seed in `seeds` [B, 2]."""
        uniform = randomness.uniform(seeds, (self.noise_size,))
        return tf.math.log(uniform) - tf.math.log1p(-uniform)

    def sample(self, parameters, noise):
        """Raw actions [B, n]; the mode where the noise is zero."""
        return self.mode(parameters + noise)

    def mode(self, parameters):
        """The most probable bits [B, n]."""
        return tf.cast(parameters > 0, tf.int64)

    def to_env(self, actions):
        """Actions of the space, in its dtype, [B, n]."""
        return tf.cast(actions, self.dtype)

    def describe(self, parameters):
        """Named tensors that describe the policy to whoever is served by it."""
        return {"probabilities": tf.sigmoid(parameters)}


class DiagonalGaussian(_ScoredByTFP):
    """Actions of a Box of rank 1: independent Gaussians, clipped to the bounds for the environment.

        a = clip(centre + half_width · u, low, high),   u ~ N(mean, std²)

    Raw actions [B, A] are the u: 0 is the centre of finite bounds, and ±1 are the bounds. So a
    policy begins in the middle of any Box, and as wide as it. Where a bound is infinite the raw
    action is in the units of the environment (`box_units`).

    Parameters [B, 2A] are the means and the log standard deviations of u, the latter bounded to
    [-20, 2]. Log-probability and entropy are those of centre + half_width · u, before it is
    clipped: the density of a clipped action is not the Gaussian's. Noise is standard normal [B, A].

    Example:
    >>> import gymnasium, numpy as np
    >>> gaussian = DiagonalGaussian(gymnasium.spaces.Box(500.0, 1000.0, (1,)))
    >>> gaussian.to_env(gaussian.mode(np.array([[0.1, 0.0], [3.0, 0.0]], "float32"))).numpy()
    array([[ 775.],
           [1000.]], dtype=float32)
    """

    def __init__(self, space):
        self.dtype = space.dtype
        # Bounds in float32, for LiteRT; where that rounds them, inwards.
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        self.low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
        self.high = np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)
        self.centre, self.half_width = box_units(space)
        self.action_shape, self.action_dtype = space.shape, tf.float32
        self.state_dependent_size = self.noise_size = space.shape[0]
        self.parameter_size = 2 * self.noise_size
        self.log_std_shape = space.shape

    def parameters(self, mean, features, log_std):
        """The parameters [B, P] of means [B, A], of an encoder's features [B, F] and a variable."""
        return tf.concat([mean, tf.zeros_like(mean) + log_std], axis=-1)

    def _mean_and_log_std(self, parameters):
        mean, log_std = tf.split(parameters, 2, axis=-1)
        # The gradient passes the bounds, or nothing could bring a parameter back inside.
        excess = tf.clip_by_value(log_std, *LOG_STD_RANGE) - log_std
        return mean, log_std + tf.stop_gradient(excess)

    def distribution(self, parameters):
        """The TFP distribution over raw actions."""
        mean, log_std = self._mean_and_log_std(parameters)
        return tfd.MultivariateNormalDiag(mean, tf.exp(log_std))

    @property
    def _log_half_widths(self):
        return np.sum(np.log(self.half_width), dtype=np.float32)

    def log_prob(self, parameters, actions):
        """Log-density [B] of centre + half_width · u, at the raw actions u [B, A]."""
        return super().log_prob(parameters, actions) - self._log_half_widths

    def entropy(self, parameters):
        """Entropy of centre + half_width · u, in nats, summed over dimensions, [B]."""
        return super().entropy(parameters) + self._log_half_widths

    def fisher_product(self, parameters, tangents):
        """F v [B, 2A] in means and log deviations, F = diag(1/σ², 2).

        Squashing and changing units are bijections of actions, and so leave it as it is.
        """
        _, log_std = self._mean_and_log_std(parameters)
        mean_tangents, log_std_tangents = tf.split(tangents, 2, axis=-1)
        return tf.concat([mean_tangents * tf.exp(-2.0 * log_std), 2.0 * log_std_tangents], axis=-1)

    def draw_noise(self, rng, shape):
        """Standard normal noise [*shape, A] from a NumPy generator."""
        return rng.standard_normal((*shape, self.noise_size), dtype=np.float32)

    def stateless_noise(self, seeds):
        """Standard normal noise [B, A], a row being a function of its seed in `seeds` [B, 2]."""
        return randomness.normal(seeds, (self.noise_size,))

    def sample(self, parameters, noise):
        """Raw actions [B, A], mean + std · noise."""
        mean, log_std = self._mean_and_log_std(parameters)
        return mean + tf.exp(log_std) * noise

    def mode(self, parameters):
        """The mean [B, A]."""
        return self._mean_and_log_std(parameters)[0]

    def to_env(self, actions):
        """Actions inside the bounds, [B, A], in the space's dtype."""
        actions = self.centre + self.half_width * actions
        return tf.cast(tf.clip_by_value(actions, self.low, self.high), self.dtype)

    def describe(self, parameters):
        """Mean and standard deviation before clipping, in the environment's units."""
        mean, log_std = self._mean_and_log_std(parameters)
        return {
            "mean": self.centre + self.half_width * mean,
            "standard_deviation": self.half_width * tf.exp(log_std),
        }


class SquashedGaussian(DiagonalGaussian):
    """Actions of a bounded Box: a Gaussian u squashed by tanh and rescaled to the bounds.

        a = centre + half_width · tanh(u)
        log π(a) = log N(u) - Σ [log half_width + log(1 - tanh² u)]

    Raw actions are the u: they are stored, so nothing is ever recovered by atanh, which overflows.
    The entropy's E[log(1 - tanh² u)] has no closed form; it is integrated, to 1e-5 nats or better.
    The `mode` is the median, centre + half_width · tanh(mean).

    Raises:
        ValueError: a bound of the space is infinite.
    """

    def __init__(self, space):
        super().__init__(space)
        if not (np.all(np.isfinite(space.low)) and np.all(np.isfinite(space.high))):
            raise ValueError(f"squash=True needs finite action bounds, received {space}.")
        # Of bounds however far apart. Halved first: the sum of two large ones may overflow.
        self.centre = (space.high / 2 + space.low / 2).astype(np.float32)
        with np.errstate(over="ignore"):
            self.half_width = (space.high / 2 - space.low / 2).astype(np.float32)
        if not np.all(np.isfinite(self.half_width) & (self.half_width > 0)):
            raise ValueError(f"squash=True needs bounds some float32 apart, received {space}.")

    def log_prob(self, parameters, actions):
        """log-density [B] of the squashed action, at the raw actions u [B, A]."""
        correction = tf.reduce_sum(_log_one_minus_tanh_squared(actions), axis=-1)
        return super().log_prob(parameters, actions) - correction

    def entropy(self, parameters):
        """Entropy of the squashed action, in nats, summed over dimensions, [B]."""
        mean, log_std = self._mean_and_log_std(parameters)
        expected = _expected_log_one_minus_tanh_squared(mean, tf.exp(log_std))
        return super().entropy(parameters) + tf.reduce_sum(expected, axis=-1)

    def to_env(self, actions):
        """Centre + half_width · tanh(u), [B, A], in the space's dtype."""
        return super().to_env(tf.tanh(actions))

    def describe(self, parameters):
        """Named tensors that describe the Gaussian before squashing."""
        mean, log_std = self._mean_and_log_std(parameters)
        return {"unsquashed_mean": mean, "unsquashed_standard_deviation": tf.exp(log_std)}


class StateDependentGaussian(DiagonalGaussian):
    """Actions of a Box as a Gaussian whose noise is a function of the state, held for some steps.

    Generalized state-dependent exploration: a matrix E [F, A] of standard normal noise is drawn
    every few steps, and as long as it stays, the action is a function of the state,

        a = μ(s) + Σ_f φ_f(s) σ_f E_f,   σ [F, A] the deviations,   φ [F] the encoder's features.

    Units are those of `DiagonalGaussian`. What is scored is the distribution of a when E is drawn
    anew, N(μ, Σ_f φ_f² σ_f²): parameters
    [B, 2A + F·A] are μ, the logarithm of that deviation, and φ_f σ_f divided by it, which no score
    depends on. Features get no gradient from the noise that they make. Noise is E, [B, F·A].

    Args:
        space: a Box of rank 1.
        features: F.
        held_steps: steps for which a rollout holds E; the next rollout draws its own.

    Reference: Raffin et al., 2021, "Smooth exploration for robotic reinforcement learning",
    arXiv:2005.05719, with the distribution of Rückstieß et al., 2008, "State-dependent exploration
    for policy gradient methods".
    """

    def __init__(self, space, features, held_steps):
        super().__init__(space)
        self.features, self.held_steps = features, held_steps
        actions = space.shape[0]
        self.noise_size = features * actions
        self.parameter_size = 2 * actions + self.noise_size
        self.log_std_shape = features, actions

    def parameters(self, mean, features, log_std):
        features = tf.stop_gradient(tf.cast(features, mean.dtype))
        each = features[:, :, None] * tf.exp(log_std)
        variance = tf.reduce_sum(tf.square(each), axis=1) + 1e-6
        directions = each * tf.math.rsqrt(variance)[:, None]
        directions = tf.reshape(directions, (-1, self.noise_size))
        return tf.concat([mean, 0.5 * tf.math.log(variance), directions], axis=-1)

    def _mean_and_log_std(self, parameters):
        return super()._mean_and_log_std(parameters[:, : 2 * self.action_shape[0]])

    def fisher_product(self, parameters, tangents):
        """F v [B, 2A + F·A]: as of any Gaussian, and nothing for what no score depends on."""
        product = super().fisher_product(parameters, tangents[:, : 2 * self.action_shape[0]])
        return tf.pad(product, [[0, 0], [0, self.noise_size]])

    def sample(self, parameters, noise):
        """Raw actions [B, A] of noise [B, F·A]."""
        directions = parameters[:, 2 * self.action_shape[0] :]
        each = tf.reshape(directions * noise, (-1, self.features, *self.action_shape))
        return super().sample(parameters, tf.reduce_sum(each, axis=1))


def for_action_space(space, squash=False):
    """The action distribution of a space.

    Args:
        space: a Discrete space, a MultiDiscrete or MultiBinary space of rank 1, or a Box of rank 1
            with a floating dtype.
        squash: for a Box, squash by tanh into the bounds instead of clipping to them.

    Raises:
        ValueError: no distribution exists for the space, or `squash` does not apply to it.
    """
    check_action_space(space)
    if isinstance(space, gymnasium.spaces.Box):
        return SquashedGaussian(space) if squash else DiagonalGaussian(space)
    if squash:
        raise ValueError(f"squash=True applies to Box action spaces, received {space}.")
    if isinstance(space, gymnasium.spaces.Discrete):
        return Categorical(space)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return MultiCategorical(space)
    return Bernoulli(space)
