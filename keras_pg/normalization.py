"""Running statistics as weights of the model, so that they are saved, resumed and served with it.

Weights change only in `update`, which is called once at the end of each train step: a policy that
was normalized otherwise would be another one than that which collected. Statistics are merged with
the parallel variance formula of Chan, Golub and LeVeque (1983, eq. 2.1), in float64:

    δ = mean_B - mean_A,   n = n_A + n_B
    mean = mean_A + δ n_B / n
    M2 = M2_A + M2_B + δ² n_A n_B / n
"""

import keras
import tensorflow as tf


class RunningMoments(keras.layers.Layer):
    """Count, mean and sum of squared deviations of a stream, per dimension, in float64."""

    def __init__(self, shape, trainable=False, **kwargs):
        # In float32 whatever Keras's policy: 16 bits do not hold what this layer takes off.
        super().__init__(trainable=trainable, **{"dtype": "float32", **kwargs})
        self.shape = tuple(shape)

        def accumulator(name, shape):
            return self.add_weight(
                name=name, shape=shape, dtype="float64", initializer="zeros", trainable=False
            )

        self.count = accumulator("count", ())
        self.mean = accumulator("mean", self.shape)
        self.squared_deviations = accumulator("squared_deviations", self.shape)
        self.built = True

    def build(self, input_shape):
        """Nothing: the constructor makes the statistics. Keras notes the shape for `summary`."""

    def get_build_config(self):
        return None

    def merge(self, x, mask):
        """Merges the rows of `x` [B, ...] where `mask` [B] is True."""
        weights = self.count, self.mean, self.squared_deviations
        for weight, value in zip(weights, self.merged(x, mask), strict=True):
            weight.assign(value)

    def merged(self, x, mask):
        """Count, mean and sum of squared deviations as `merge` would leave them, float64."""
        x = tf.cast(x, tf.float64)
        weights = tf.reshape(tf.cast(mask, tf.float64), [-1] + [1] * len(self.shape))
        batch_count = tf.reduce_sum(weights)
        # `where`, not a product: a masked row may hold anything, NaN included.
        x = tf.where(weights > 0, x, 0.0)
        batch_mean = tf.math.divide_no_nan(tf.reduce_sum(x, axis=0), batch_count)
        deviations = tf.where(weights > 0, x - batch_mean, 0.0)
        delta = batch_mean - self.mean
        count = self.count + batch_count
        share = tf.math.divide_no_nan(batch_count, count)
        squared = tf.reduce_sum(tf.square(deviations), axis=0)
        squared += self.squared_deviations + tf.square(delta) * self.count * share
        return count, self.mean + delta * share, squared

    def variance(self):
        """Population variance, float64; 1 before the first row."""
        return _variance(self.count, self.squared_deviations)


def _variance(count, squared_deviations):
    variance = squared_deviations / tf.maximum(count, 1.0)
    return tf.where(count > 0, variance, tf.ones_like(variance))


@keras.saving.register_keras_serializable("keras_pg")
class ObservationNormalization(RunningMoments):
    """Centres and scales each observation dimension by running statistics.

        y = clip((x - mean) / √(variance + ε), -clip, clip)

    The statistics change only in `update`, never in a forward pass: a policy gives the same answer
    to the same observation in training, evaluation and serving.

    Args:
        shape: shape of one observation.
        clip: bound on the absolute normalized value.
        epsilon: added to the variance.

    Example:
    >>> import numpy as np
    >>> layer = ObservationNormalization((1,))
    >>> layer.update(np.array([[1.0], [3.0]]), np.array([True, True]))
    >>> np.round(layer(np.array([[3.0]], "float32")), 3)
    array([[1.]], dtype=float32)
    """

    def __init__(self, shape, clip=10.0, epsilon=1e-8, **kwargs):
        super().__init__(shape, **kwargs)
        self.clip = clip
        self.epsilon = epsilon
        # The forward pass is float32 only (LiteRT has no float64 arithmetic). The mean is kept
        # as two float32 numbers: subtracted one after the other they lose no digits, however
        # large the mean is beside the spread.
        self.offset, self.offset_remainder, self.scale = (
            self.add_weight(name=name, shape=self.shape, initializer=initial, trainable=False)
            for name, initial in (
                ("offset", "zeros"),
                ("offset_remainder", "zeros"),
                ("scale", "ones"),
            )
        )
        self.build((None, *self.shape))

    def update(self, observations, mask):
        """Merges observations [B, ...] where `mask` [B] is True into the statistics."""
        self.merge(observations, mask)
        offset = tf.cast(self.mean, tf.float32)
        self.offset.assign(offset)
        self.offset_remainder.assign(tf.cast(self.mean - tf.cast(offset, tf.float64), tf.float32))
        self.scale.assign(tf.cast(tf.math.rsqrt(self.variance() + self.epsilon), tf.float32))

    def call(self, observations):
        centred = (observations - self.offset) - self.offset_remainder
        return tf.clip_by_value(centred * self.scale, -self.clip, self.clip)

    def compute_output_shape(self, input_shape):
        """That of the observations."""
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "shape": self.shape,
            "clip": self.clip,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable("keras_pg")
class RewardScaling(RunningMoments):
    """Divides rewards by the running standard deviation of the discounted return.

        R_t = γ R_{t-1} + r_t   (R restarts with each episode),   r'_t = clip(r_t / std(R))

    std(R) is that of all steps up to t, those of earlier rollouts included. Rewards are not
    centred: that would change which policy is best. Training only; never exported.

    Args:
        clip: bound on the absolute scaled reward.

    Reference: Engstrom et al., 2020, arXiv:2005.12729, section 3 and algorithm 1.
    """

    def __init__(self, clip=10.0, epsilon=1e-8, **kwargs):
        super().__init__((), **kwargs)
        self.clip = clip
        self.epsilon = epsilon
        self.build((None, None))

    def update(self, discounted_returns, mask):
        """Merges R_t [B] where `mask` [B] is True into the statistics."""
        self.merge(discounted_returns, mask)

    def call(self, rewards, discounted_returns, mask):
        """Scaled rewards [T, N] of a rollout with these R_t [T, N], where `mask` [T, N] is True."""
        # Sums of deviations from the mean in the end, which loses no digits, whatever R is.
        flat = (tf.reshape(x, [-1]) for x in (discounted_returns, mask))
        _, centre, _ = self.merged(*flat)
        deviations = tf.where(mask, tf.cast(discounted_returns, tf.float64) - centre, 0.0)

        def up_to_each_step(x):
            return tf.cumsum(tf.reduce_sum(x, axis=1))

        shift = self.mean - centre
        count = self.count + up_to_each_step(tf.cast(mask, tf.float64))
        total = self.count * shift + up_to_each_step(deviations)
        before = self.squared_deviations + self.count * tf.square(shift)
        squares = before + up_to_each_step(tf.square(deviations))
        squared_deviations = squares - tf.math.divide_no_nan(tf.square(total), count)
        variance = _variance(count, tf.maximum(squared_deviations, 0.0))[:, None]
        scale = tf.cast(tf.math.rsqrt(variance + self.epsilon), rewards.dtype)
        return tf.clip_by_value(rewards * scale, -self.clip, self.clip)

    @property
    def output_shape(self):
        """That of the rewards [T, N], for `summary`."""
        return None, None

    def get_config(self):
        config = {**super().get_config(), "clip": self.clip, "epsilon": self.epsilon}
        return config
