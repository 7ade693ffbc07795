"""Facts about the actor and the critic.

Matrix products of 64 terms of order 1 in float32 are known to 1e-5; where two networks hold the
same weights and do the same operations, results are compared for equality.
"""

import functools
import json
import re

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from keras_pg import Actor, Critic, mlp
from keras_pg.networks import Head

OBSERVATIONS = Box(-np.inf, np.inf, (3,))
ACTIONS = Box(-1, 1, (2,))


def observations(rows=7, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)


@keras.saving.register_keras_serializable("test_networks")
class Subclassed(keras.Model):
    """An encoder that does not take `training`, with a residual connection."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units, "relu")

    def call(self, x):
        return x + self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def functional():
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(5, "tanh")(inputs)
    return keras.Model(inputs, keras.layers.Concatenate()([inputs, hidden]))


ENCODERS = {
    "default": lambda: None,
    "mlp": lambda: mlp((8,), "relu"),
    "sequential": lambda: keras.Sequential([keras.layers.Dense(6), keras.layers.ReLU()]),
    "functional": functional,
    "subclassed": Subclassed,
}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def networks(encoder="default", seed=0, **keywords):
    """An actor and a critic, with an encoder each."""
    return (
        Actor(OBSERVATIONS, ACTIONS, ENCODERS[encoder](), seed=seed, **keywords),
        Critic(OBSERVATIONS, ENCODERS[encoder](), seed=seed, **keywords),
    )


# For tests that change no weight.
unchanged_networks = functools.cache(networks)


def through_json(network):
    written = json.loads(json.dumps(keras.saving.serialize_keras_object(network), allow_nan=False))
    return keras.saving.deserialize_keras_object(written)


# ------------------------------------------------------------------------------ initial weights


def test_hidden_layers_are_orthogonal_with_gain_root_two():
    for network in unchanged_networks():
        first, second = (layer.kernel.numpy() for layer in network.encoder.layers)
        assert first.shape == (3, 64) and second.shape == (64, 64)
        np.testing.assert_allclose(first @ first.T, 2 * np.eye(3), atol=1e-5)
        np.testing.assert_allclose(second.T @ second, 2 * np.eye(64), atol=1e-5)
        assert [layer.activation.__name__ for layer in network.encoder.layers] == ["tanh", "tanh"]
        for layer in (*network.encoder.layers, network.head):
            np.testing.assert_array_equal(layer.bias, np.zeros(layer.units))


def test_the_last_layers_are_orthogonal_with_the_gain_of_their_task():
    actor, critic = unchanged_networks()
    kernel = actor.head.kernel.numpy()
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(2), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(critic.head.kernel), 1.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_the_initial_policy_is_near_uniform_in_every_state(scale):
    actor = Actor(OBSERVATIONS, Discrete(4), seed=0)
    logits = actor(scale * observations(100)).numpy()
    # 64 features in [-1, 1] have norm 8 at most, and the last layer scales by 0.01.
    assert np.all(np.abs(logits) <= 0.08)
    np.testing.assert_allclose(tf.nn.softmax(logits), np.full((100, 4), 0.25), atol=0.25 * 0.16)


@pytest.mark.parametrize("squash", [False, True])
def test_the_initial_gaussian_is_near_centred_and_as_wide_as_asked_for(squash):
    actor = Actor(OBSERVATIONS, ACTIONS, squash=squash, log_std_init=-0.5, seed=0)
    mean, log_std = np.split(actor(observations()).numpy(), 2, axis=-1)
    assert np.all(np.abs(mean) <= 0.08)
    np.testing.assert_array_equal(log_std, np.full((7, 2), -0.5))
    np.testing.assert_allclose(actor.distribution(observations()).stddev(), np.exp(log_std))


def test_the_standard_deviation_does_not_depend_on_the_state():
    actor, _ = networks()
    actor.log_std.assign([0.3, -1.0])
    np.testing.assert_array_equal(actor(observations())[:, 2:], np.float32([[0.3, -1.0]] * 7))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, same, other = (networks(seed=seed) for seed in (1, 1, 2))
    for network, twin, stranger in zip(one, same, other):
        for a, b in zip(network.get_weights(), twin.get_weights()):
            np.testing.assert_array_equal(a, b)
        kernels = [
            [w.numpy() for w in each.trainable_variables if w.name == "kernel"]
            for each in (network, stranger)
        ]
        assert len(kernels[0]) == 3
        for a, b in zip(*kernels):
            assert np.all(a != b)


def test_without_a_seed_every_network_is_another():
    one, other = (Actor(OBSERVATIONS, ACTIONS) for _ in range(2))
    assert np.any(one.head.kernel.numpy() != other.head.kernel.numpy())


def test_the_layers_of_one_network_are_not_copies_of_each_other():
    encoder = mlp((3, 3), seed=0)
    encoder.build((None, 3))
    first, second = (layer.kernel.numpy() for layer in encoder.layers)
    assert np.all(first != second)


# ------------------------------------------------------------------------ outputs and encoders


@every_encoder
def test_outputs_have_one_row_a_state_whatever_the_encoder(encoder):
    actor, critic = unchanged_networks(encoder)
    for rows in (1, 7):
        assert actor(observations(rows)).shape == (rows, 4)
        assert critic(observations(rows)).shape == (rows,)
    assert actor.distribution(observations()).sample(seed=[0, 1]).shape == (7, 2)


@every_encoder
def test_outputs_are_head_of_encoder_of_the_observation(encoder):
    actor, critic = networks(encoder, normalize_observations=False)
    x = observations()
    np.testing.assert_array_equal(actor(x)[:, :2], actor.head(actor.encoder(x)))
    np.testing.assert_array_equal(critic(x), critic.head(critic.encoder(x))[:, 0])


@every_encoder
def test_rows_do_not_see_each_other(encoder):
    x = observations()
    for network in unchanged_networks(encoder):
        # Another batch size, another order of summation.
        np.testing.assert_allclose(network(x)[2:3], network(x[2:3]), rtol=1e-5, atol=1e-6)


@every_encoder
def test_every_trainable_weight_receives_a_gradient(encoder):
    x = observations()
    actor, critic = unchanged_networks(encoder)
    noise = actor.action_distribution.stateless_noise(np.arange(14).reshape(7, 2))
    actions = actor.action_distribution.sample(actor(x), noise)
    with tf.GradientTape(persistent=True) as tape:
        score = tf.reduce_sum(actor.action_distribution.log_prob(actor(x), actions))
        value = tf.reduce_sum(tf.square(critic(x) - 1.0))
    for output, network in ((score, actor), (value, critic)):
        variables = network.trainable_variables
        assert len(variables) >= 4
        for gradient in tape.gradient(output, [v.value for v in variables]):
            assert gradient is not None and np.any(tf.convert_to_tensor(gradient) != 0)


def test_the_gradient_of_log_std_is_the_squared_noise_minus_one():
    actor, _ = unchanged_networks()
    x = observations()
    noise = actor.action_distribution.stateless_noise(np.arange(14).reshape(7, 2))
    actions = actor.action_distribution.sample(actor(x), noise)
    with tf.GradientTape() as tape:
        score = tf.reduce_sum(actor.action_distribution.log_prob(actor(x), actions))
    gradient = tape.gradient(score, actor.log_std.value)
    np.testing.assert_allclose(gradient, np.sum(noise.numpy() ** 2 - 1, axis=0), rtol=1e-5)


def test_actor_and_critic_share_no_weight():
    actor, critic = unchanged_networks()
    assert not {id(v) for v in actor.variables} & {id(v) for v in critic.variables}


def test_dropout_is_on_in_training_only():
    encoder = keras.Sequential([keras.layers.Dense(64), keras.layers.Dropout(0.5)])
    critic = Critic(OBSERVATIONS, encoder, seed=0)
    x = observations()
    np.testing.assert_array_equal(critic(x), critic(x, training=False))
    assert np.all(critic(x, training=True).numpy() != critic(x).numpy())


# ------------------------------------------------------------------------- observation spaces


@pytest.mark.parametrize("start", [0, 10, -2, 2**40])
def test_discrete_observations_are_one_hot(start):
    space = Discrete(4, start=start)
    states = np.arange(start, start + 4)
    actor, critic = Actor(space, Discrete(3), seed=0), Critic(space, seed=0)
    np.testing.assert_array_equal(actor(states), actor.head(actor.encoder(np.eye(4))))
    np.testing.assert_array_equal(critic(states), critic.head(critic.encoder(np.eye(4)))[:, 0])
    assert len(np.unique(critic(states))) == 4


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_discrete_observations_may_be_of_any_integer_dtype(dtype):
    critic = Critic(Discrete(4, start=10), seed=0)
    states = np.array([10, 13])
    np.testing.assert_array_equal(critic(states.astype(dtype)), critic(states))


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int64, np.float16])
def test_a_box_of_any_dtype_is_read_as_float32(dtype):
    space = Box(0, 200, (3,), dtype)
    x = np.array([[0, 100, 200], [1, 2, 3]])
    for network in (Actor(space, ACTIONS, seed=0), Critic(space, seed=0)):
        network.update_normalization(x.astype(dtype), np.ones(2, bool))
        output = network(x.astype(dtype))
        assert output.dtype == tf.float32
        np.testing.assert_array_equal(output, network(x.astype(np.float32)))


UNSUPPORTED = [
    MultiDiscrete([[2, 3]]),
    MultiBinary([2, 3]),
    gymnasium.spaces.Dict(a=Discrete(2)),
    Box(0, 1, (2, 2, 2, 2)),
]


@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_an_unsupported_space_is_named_in_the_error(space):
    for make in (
        lambda: Actor(space, ACTIONS),
        lambda: Critic(space),
        lambda: Actor(Discrete(2), space),
    ):
        with pytest.raises(ValueError, match=re.escape(str(space))):
            make()


def test_squashing_an_unbounded_space_is_refused_with_its_name():
    space = Box(-np.inf, np.inf, (2,))
    with pytest.raises(ValueError, match=re.escape(str(space))):
        Actor(OBSERVATIONS, space, squash=True)


# -------------------------------------------------------------------------------- normalization


def test_observations_are_normalized_before_the_encoder():
    x = 50 + 3 * observations(100)
    for network in networks():
        network.update_normalization(x, np.ones(100, bool))
        exact = x.astype(np.float64)
        z = (exact - exact.mean(axis=0)) / exact.std(axis=0)
        expected = network.head(network.encoder(z.astype(np.float32)))
        output = network(x).numpy().reshape(100, -1)[:, : expected.shape[-1]]
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_without_normalization_an_update_changes_nothing():
    for network in networks(normalize_observations=False):
        before = network(observations()).numpy()
        network.update_normalization(50 + observations(), np.ones(7, bool))
        np.testing.assert_array_equal(network(observations()), before)
        assert len(network.weights) == len(network.trainable_weights)


def test_discrete_observations_are_not_normalized():
    critic = Critic(Discrete(4, start=10), seed=0)
    states = np.arange(10, 14)
    before = critic(states).numpy()
    critic.update_normalization(states[:2], np.ones(2, bool))
    np.testing.assert_array_equal(critic(states), before)


def test_a_forward_pass_changes_no_weight():
    for network in networks():
        before = network.get_weights()
        network(1e3 * observations(), training=True)
        for old, new in zip(before, network.get_weights()):
            np.testing.assert_array_equal(old, new)


# -------------------------------------------------------------------------------- serialization


@every_encoder
def test_a_network_survives_its_config(encoder):
    x = observations()
    for network in networks(encoder):
        network.update_normalization(50 + 3 * x, np.ones(7, bool))
        restored = through_json(network)
        assert type(restored) is type(network)
        restored.set_weights(network.get_weights())
        np.testing.assert_array_equal(restored(50 + x), network(50 + x))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "keywords"),
    [
        (OBSERVATIONS, ACTIONS, {"squash": True, "log_std_init": -0.7}),
        (OBSERVATIONS, Box(-np.inf, np.inf, (2,)), {"normalize_observations": False}),
        (OBSERVATIONS, ACTIONS, {"state_dependent_noise": 5}),
        (Discrete(4, start=10), Discrete(3, start=-1), {}),
        (OBSERVATIONS, MultiDiscrete([2, 3], start=[4, -1]), {}),
        (OBSERVATIONS, MultiBinary(3), {}),
    ],
    ids=[
        "squashed",
        "unbounded",
        "state-dependent noise",
        "discrete",
        "multidiscrete",
        "multibinary",
    ],
)
def test_an_actor_survives_its_config_with_its_spaces_and_options(
    observation_space, action_space, keywords
):
    actor = Actor(observation_space, action_space, seed=0, name="policy", **keywords)
    restored = through_json(actor)
    assert restored.observation_space == observation_space
    assert restored.action_space == action_space
    assert restored.name == "policy"
    assert type(restored.action_distribution) is type(actor.action_distribution)
    configs = [{**each.get_config(), "encoder": None} for each in (restored, actor)]
    assert configs[0] == configs[1]
    for option, value in keywords.items():
        assert getattr(restored, option) == value
    if "log_std_init" in keywords:
        np.testing.assert_array_equal(restored.log_std, np.float32([-0.7, -0.7]))


@pytest.mark.parametrize("units", [1, 2, 6, 7])
def test_a_compiled_head_is_a_dense_layer_and_so_are_its_first_and_second_derivatives(units):
    rng = np.random.default_rng(0)
    head, dense = Head(units, 1.0, seed=0), keras.layers.Dense(units)
    x, direction = (rng.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    weights = [rng.normal(size=shape).astype(np.float32) for shape in ((3, units), (units,))]
    for layer in (head, dense):
        layer.build((None, 3))
        layer.set_weights(weights)

    def derivatives(layer, x):
        watched = [x, layer.kernel.value, layer.bias.value]
        with tf.GradientTape() as outer:
            outer.watch(watched)
            with tf.GradientTape() as inner:
                inner.watch(watched)
                y = layer(x)
                loss = tf.reduce_sum(y**3)
            gradients = inner.gradient(loss, watched)
            slope = tf.reduce_sum(gradients[0] * direction) + tf.reduce_sum(gradients[1] ** 2)
        return y, gradients, outer.gradient(slope, watched)

    compiled = tf.function(derivatives, jit_compile=True)
    for actual, expected in zip(
        tf.nest.flatten(compiled(head, tf.constant(x))),
        tf.nest.flatten(derivatives(dense, tf.constant(x))),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
