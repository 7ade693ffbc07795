"""Policy and value networks as Keras models: an encoder, and a head."""

import gymnasium
import keras
import numpy as np
import tensorflow as tf

from keras_pg import distributions, randomness, spaces
from keras_pg.encoders import compiled_by_xla, default_encoder, nth_seed
from keras_pg.hyperparameters import check_count, check_range
from keras_pg.keras_models import independent, variables_of, warn_of_moved_in_training
from keras_pg.normalization import ObservationNormalization

register = keras.saving.register_keras_serializable("keras_pg")


class Head(keras.layers.Dense):
    """The last layer of a network: float32, with orthogonal initialization.

    Where XLA compiles it, up to six units are differentiated one by one. XLA has no fast code on a
    CPU for products of which one dimension is 2 or 3, as both of the gradient's would be.
    """

    def __init__(self, units, gain, seed):
        orthogonal = keras.initializers.Orthogonal(gain, seed=nth_seed(seed, 1000))
        super().__init__(units, dtype="float32", kernel_initializer=orthogonal, name="head")

    def call(self, features):
        if self.units <= 6 and compiled_by_xla():
            return _narrow_product(features, tf.convert_to_tensor(self.kernel)) + self.bias
        return super().call(features)


@tf.custom_gradient
def _narrow_product(x, kernel):
    """The product of x [B, F] and kernel [F, U]."""

    def gradient(upstream):
        units = list(zip(tf.unstack(upstream, axis=1), tf.unstack(kernel, axis=1), strict=True))
        of_x = tf.add_n([u[:, None] * column for u, column in units])
        of_kernel = [tf.linalg.matvec(x, u, transpose_a=True) for u, _ in units]
        return of_x, tf.stack(of_kernel, axis=1)

    return x @ kernel, gradient


class _Network(keras.Model):
    """Observations of a space → float features: preprocessing, normalization, encoder."""

    def __init__(
        self, observation_space, encoder, normalize_observations, seed, beside=0, **kwargs
    ):
        # Keras's precision policy is for the encoder. What goes into it and what is made of its
        # features is float32: log-probabilities of 16 bits tell no old policy from a new one.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.observation_space = spaces.from_config(observation_space)
        spaces.check_observation_space(self.observation_space)
        observed = spaces.without_mask(self.observation_space)
        discrete, image = isinstance(observed, gymnasium.spaces.Discrete), spaces.is_image(observed)
        shape = (int(observed.n),) if discrete else observed.shape
        if image:
            rows, columns, *channels = np.roll(shape, -int(spaces.has_channels_first(observed)))
            shape = int(rows), int(columns), int(channels[0]) if channels else 1
        self.normalize_observations = normalize_observations
        self.normalization = None
        input_shape = (*shape[:-1], shape[-1] + beside)
        with variables_of(self.name):
            if normalize_observations and not discrete and not image:
                self.normalization = ObservationNormalization(shape, name="normalization")
            self.encoder = default_encoder(shape, seed) if encoder is None else encoder
            # One symbolic call builds any kind of Keras model and tells the size of its features.
            features = self.encoder(keras.Input(input_shape))
        if len(features.shape) != 2:
            raise ValueError(
                f"The encoder makes features of shape {features.shape} of observations of shape "
                f"{(None, *shape)}, expected [B, F]: a `keras.layers.Flatten` may be missing."
            )
        self.features_size = features.shape[-1]
        warn_of_moved_in_training(self.encoder, input_shape)

    def _build_head(self, units, gain, seed):
        """Makes the last layer, of so many units. The network is built then."""
        self.head = Head(units, gain, seed)
        with variables_of(self.name):
            self.head.build((None, self.features_size))
        self.build((None, *spaces.without_mask(self.observation_space).shape))

    def build(self, input_shape):
        """Nothing: the constructor makes everything. Keras notes the shape for `summary`."""

    def features(self, observations, training=False, beside=None):
        """Encoder output [B, F] for raw observations [B, ...] of the space.

        `beside` [B, K] are further inputs of the encoder, of the width given when it was made. They
        follow the observation along its last axis, for an image at each place.
        """
        x = self._preprocessed(spaces.without_mask(observations))
        if beside is not None:
            beside = tf.reshape(beside, [-1, *[1] * (len(x.shape) - 2), beside.shape[-1]])
            x = tf.concat([x, beside * tf.ones_like(x[..., :1])], axis=-1)
        return self.encoder(x, training=training)

    def _preprocessed(self, observations):
        """What the encoder sees of observations without their mask, float32."""
        space = spaces.without_mask(self.observation_space)
        if isinstance(space, gymnasium.spaces.Discrete):
            index = tf.cast(observations, tf.int64) - int(space.start)
            # Not tf.one_hot: in ONNX that takes -1 for the last.
            states = tf.range(int(space.n), dtype=index.dtype)
            return tf.cast(tf.equal(index[:, None], states), tf.float32)
        x = tf.cast(observations, tf.float32)
        if spaces.is_image(space):
            low, high = float(space.low.flat[0]), float(space.high.flat[0])
            x = (x - low) / (high - low)
            if len(space.shape) == 2:
                return x[..., None]
            return tf.transpose(x, [0, 2, 3, 1]) if spaces.has_channels_first(space) else x
        return x if self.normalization is None else self.normalization(x)

    def update_normalization(self, observations, mask):
        """Merges observations [B, ...] where `mask` [B] is True into the running statistics."""
        if self.normalization is not None:
            # In the space's own precision: a float32 of a large number has lost its last digits.
            self.normalization.update(spaces.without_mask(observations), mask)

    def get_config(self):
        return {
            "name": self.name,
            "observation_space": spaces.to_config(self.observation_space),
            "encoder": self.encoder,
            "normalize_observations": self.normalize_observations,
        }

    @classmethod
    def from_config(cls, config):
        """A network with weights of its own, given `get_config()` or what Keras has saved of it."""
        encoder = keras.saving.serialize_keras_object(config["encoder"])
        inner = (encoder.get("config") or {}).get("name", "encoder")
        with variables_of(config["name"]), keras.name_scope(inner):
            return cls(**independent(config))

    def get_build_config(self):
        # The spaces, not an input shape, build a network; the constructor has done it already.
        return None


@register
class Actor(_Network):
    """A stochastic policy π(a|s): observations → parameters of an action distribution.

    Args:
        observation_space: Gymnasium space; Box of rank 1 or 2, an image, or Discrete (one-hot
            encoded); or Dict(observation=one of these, action_mask=MultiBinary(n)), where
            observations say which actions are legal. The others have probability 0 then; the
            encoder sees no mask. Images are Boxes of rank 3, and of rank 2 if their numbers are
            bytes from 0 to 255. Their bounds become 0 and 1, and their channels are last for the
            encoder; they are taken for the first axis where that is the shortest.
        action_space: Gymnasium space; Discrete or MultiDiscrete (categorical), MultiBinary
            (Bernoulli) or Box of rank 1 (Gaussian). Only the first two can be masked: a mask has an
            entry for each choice, those of a MultiDiscrete space one component after the other.
        encoder: any Keras model from float [B, ...] to features [B, F]. Default: `mlp()`, of what
            is flattened if it is of rank 2; for images `cnn()`, or, below 36 x 36, one convolution
            of 16 filters of 3 x 3 and a layer of 128 units (below 3 x 3, `mlp()` too).
        normalize_observations: normalize Box observations, but not images, by running statistics.
        squash: squash Gaussian actions by tanh into the bounds instead of clipping them.
        log_std_init: initial log standard deviation of Gaussian actions, or of the noise of each
            feature, in [-20, 2]; 1 is the half width of finite bounds. The deviation stays in
            [e⁻²⁰, e²] while it learns.
        state_dependent_noise: for how many steps of a rollout noise is held that is a function of
            the encoder's features (generalized state-dependent exploration, see
            `keras_pg.distributions.StateDependentGaussian`); None for Gaussian actions whose noise
            is drawn in each step.
        seed: makes the initial weights reproducible.

    Calling the actor returns the parameters, float [B, P]; `distribution` wraps them for TensorFlow
    Probability; `action_distribution` has log_prob, entropy, KL and sampling as functions of them.

    Raises:
        ValueError: a space is not supported, or an option does not apply to it.

    Example:
    >>> import gymnasium, numpy as np
    >>> actor = Actor(gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2), seed=0)
    >>> actor.distribution(np.zeros((5, 3), "float32")).sample().shape
    TensorShape([5])
    """

    def __init__(
        self,
        observation_space,
        action_space,
        encoder=None,
        *,
        normalize_observations=True,
        squash=False,
        log_std_init=0.0,
        state_dependent_noise=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(observation_space, encoder, normalize_observations, seed, **kwargs)
        self.action_space = spaces.from_config(action_space)
        spaces.check_mask(self.observation_space, self.action_space)
        self.squash = squash
        self.log_std_init = check_range("log_std_init", log_std_init, *distributions.LOG_STD_RANGE)
        self.state_dependent_noise = state_dependent_noise
        if state_dependent_noise is None:
            self.action_distribution = distributions.for_action_space(self.action_space, squash)
        else:
            held_steps = check_count("state_dependent_noise", state_dependent_noise)
            if squash or not isinstance(self.action_space, gymnasium.spaces.Box):
                raise ValueError(
                    "state_dependent_noise is for Box actions that are clipped, received "
                    f"squash={squash} and {self.action_space}."
                )
            self.action_distribution = distributions.StateDependentGaussian(
                self.action_space, self.features_size, held_steps
            )
        self.log_std = None
        if self.action_distribution.log_std_shape is not None:
            with variables_of(self.name, self):
                self.log_std = self.add_weight(
                    name="log_std",
                    shape=self.action_distribution.log_std_shape,
                    initializer=keras.initializers.Constant(log_std_init),
                )
        # A small last layer starts the policy near uniform, or centred, in every state.
        self._build_head(self.action_distribution.state_dependent_size, 0.01, seed)

    def call(self, observations, training=False):
        features = self.features(observations, training)
        parameters = self.head(features)
        if spaces.is_masked(self.observation_space):
            legal = tf.not_equal(tf.cast(observations["action_mask"], tf.int32), 0)
            # Of probability exactly 0, and finite: a row without a legal action has no NaN.
            return tf.where(legal, parameters, parameters.dtype.min)
        if self.log_std is None:
            return parameters
        return self.action_distribution.parameters(parameters, features, self.log_std)

    @property
    def output_shape(self):
        """(None, P), for `summary`."""
        return None, self.action_distribution.parameter_size

    def distribution(self, observations):
        """The TensorFlow Probability distribution over raw actions, batch shape [B]."""
        return self.action_distribution.distribution(self(observations))

    def get_config(self):
        return {
            **super().get_config(),
            "action_space": spaces.to_config(self.action_space),
            "squash": self.squash,
            "log_std_init": self.log_std_init,
            "state_dependent_noise": self.state_dependent_noise,
            "action_units": "bounds",
        }

    @classmethod
    def from_config(cls, config):
        """As of any network.

        Raises:
            ValueError: the weights of the file mean actions in other units than today's.
        """
        config = dict(config)
        units = config.pop("action_units", "environment")
        actor = super().from_config(config)
        if units != "bounds" and isinstance(actor.action_space, gymnasium.spaces.Box):
            centre, half_width = distributions.box_units(actor.action_space)
            if not actor.squash and (np.any(centre != 0) or np.any(half_width != 1)):
                raise ValueError(
                    f"This agent was saved by a version whose actions of {actor.action_space} were "
                    "in the environment's units. Today 0 is the centre of the bounds and 1 their "
                    "half width, so that the policy would act otherwise: train it again."
                )
        return actor


@register
class Critic(_Network):
    """A state-value function V(s): observations → values [B].

    Args:
        observation_space: Gymnasium space, as of an `Actor`; a mask is not looked at.
        encoder: any Keras model from float [B, ...] to features [B, F]; default as of an `Actor`.
        normalize_observations: normalize Box observations, but not images, by running statistics.
        seed: makes the initial weights reproducible.

    Raises:
        ValueError: the space is not supported.
    """

    def __init__(
        self, observation_space, encoder=None, *, normalize_observations=True, seed=None, **kwargs
    ):
        super().__init__(observation_space, encoder, normalize_observations, seed, **kwargs)
        self._build_head(1, 1.0, seed)

    @property
    def output_shape(self):
        """(None,), for `summary`."""
        return (None,)

    def call(self, observations, training=False):
        return tf.squeeze(self.head(self.features(observations, training)), axis=-1)


@register
class ActionCritic(_Network):
    """An action-value function Q(s, a): observations and env-ready actions → values [B].

    For Discrete actions the network has one output an action. Other actions are inputs of the
    network beside the observation: Box actions clipped or squashed, with finite bounds at -1 and 1,
    MultiBinary ones as they are, MultiDiscrete ones one-hot encoded.

    Args:
        observation_space: Gymnasium space, as of an `Actor`; the network does not see a mask, but
            `expectation` is over the actor's legal actions.
        action_space: Gymnasium space, as of an `Actor`.
        encoder: any Keras model from float [B, ...] to features [B, F]; default as of an `Actor`.
            Unless actions are Discrete, its input has the action's numbers after the observation's,
            along the last axis: beside an image, as channels of one number each.
        normalize_observations: normalize Box observations, but not images, by running statistics.
        action_samples: unless actions are Discrete, how many `expectation` averages over.
        seed: makes the initial weights reproducible.

    Raises:
        ValueError: a space is not supported.
    """

    def __init__(
        self,
        observation_space,
        action_space,
        encoder=None,
        *,
        normalize_observations=True,
        action_samples=16,
        seed=None,
        **kwargs,
    ):
        action_space = spaces.from_config(action_space)
        spaces.check_action_space(action_space)
        discrete = isinstance(action_space, gymnasium.spaces.Discrete)
        beside = 0
        if isinstance(action_space, gymnasium.spaces.MultiDiscrete):
            beside = int(np.sum(action_space.nvec))
        elif not discrete:
            beside = action_space.shape[0]
        super().__init__(
            observation_space, encoder, normalize_observations, seed, beside=beside, **kwargs
        )
        self.action_space, self.discrete = action_space, discrete
        self.action_samples = action_samples
        self._build_head(int(self.action_space.n) if self.discrete else 1, 1.0, seed)

    @property
    def output_shape(self):
        """(None,), for `summary`."""
        return (None,)

    def call(self, observations, actions, training=False):
        if self.discrete:
            index = tf.cast(actions, tf.int64) - int(self.action_space.start)
            values = self.head(self.features(observations, training))
            return tf.reduce_sum(values * tf.one_hot(index, values.shape[-1]), axis=-1)
        if isinstance(self.action_space, gymnasium.spaces.MultiDiscrete):
            indices = tf.cast(actions, tf.int64) - self.action_space.start
            columns = zip(tf.unstack(indices, axis=-1), self.action_space.nvec, strict=True)
            beside = tf.concat([tf.one_hot(column, int(n)) for column, n in columns], axis=-1)
        else:
            beside = tf.cast(actions, tf.float32)
            if isinstance(self.action_space, gymnasium.spaces.Box):
                centre, half_width = distributions.box_units(self.action_space)
                beside = (beside - centre) / half_width
        features = self.features(observations, training, beside)
        return tf.squeeze(self.head(features), axis=-1)

    def expectation(self, observations, actor, seed):
        """V(s) = E[Q(s, a)], a ~ π(·|s), [B]: exact for Discrete actions, else a sample mean.

        Args:
            observations: [B, ...].
            actor: the policy π.
            seed: integer [2], of the `action_samples` actions a state.
        """
        policy, parameters = actor.action_distribution, actor(observations)
        if self.discrete:
            values = self.head(self.features(observations))
            return tf.reduce_sum(values * tf.nn.softmax(parameters), axis=-1)
        k, b = self.action_samples, parameters.shape[0]
        parameters = tf.tile(parameters, [k, 1])
        noise = policy.stateless_noise(randomness.bits(seed, (k * b, 2)))
        actions = policy.to_env(policy.sample(parameters, noise))
        observations = tf.nest.map_structure(
            lambda x: tf.tile(x, [k] + [1] * (len(x.shape) - 1)), observations
        )
        return tf.reduce_mean(tf.reshape(self(observations, actions), (k, b)), axis=0)

    def get_config(self):
        return {
            **super().get_config(),
            "action_space": spaces.to_config(self.action_space),
            "action_samples": self.action_samples,
        }
