"""What Keras promises of a model, held by agents and their networks."""

import contextlib
import io
import warnings

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg.keras_models import layer_losses, moved_in_training
from stepping import OBSERVATIONS, make_rollout, step, weights

DISCRETE, BOX = gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1.0, 1.0, (2,))
ALGORITHMS = {
    name: getattr(keras_pg, name)
    for name in ("A2C", "GRPO", "MDPO", "NPG", "PPO", "REINFORCE", "TRPO")
}
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
# Those whose actors descend a loss.
GRADIENT = [algorithm for name, algorithm in ALGORITHMS.items() if name not in ("NPG", "TRPO")]
by_gradient = pytest.mark.parametrize("algorithm", GRADIENT, ids=lambda a: a.__name__)
WHOLE = {"num_minibatches": 1, "update_epochs": 1}


def encoder(l2=None, activity=None):
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4,
                "tanh",
                kernel_initializer=keras.initializers.GlorotUniform(seed=0),
                kernel_regularizer=None if l2 is None else keras.regularizers.L2(l2),
                activity_regularizer=None if activity is None else keras.regularizers.L2(activity),
            ),
        ]
    )


def built(algorithm, actor, critic=None, action_space=DISCRETE, **settings):
    whole = WHOLE if issubclass(algorithm, keras_pg.PPO) else {}
    networks = (actor,) if algorithm is keras_pg.GRPO else (actor, critic)
    agent = algorithm(*networks, seed=0, normalize_observations=False, **whole, **settings)
    agent.build(OBSERVATIONS, action_space)
    agent.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    return agent


def moved_by(agent, T=4, N=8):
    """How one train step has moved the weights, and its logs."""
    rollout = make_rollout(agent, T, N)
    before = weights(agent)
    logs = step(agent, rollout, eagerly=True)
    return [after - b for after, b in zip(weights(agent), before)], logs


@keras.saving.register_keras_serializable("tests")
class Nameless(keras.Model):
    """A user's encoder that writes down nothing."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {}


# --------------------------------------------------------------------------- losses of layers


@by_gradient
def test_a_regularizer_adds_its_loss_and_its_gradient(algorithm):
    without, with_it = (built(algorithm, encoder(l2)) for l2 in (None, 0.1))
    kernel = with_it.actor.encoder.get_weights()[0]
    (plain, logs), (regularized, more) = moved_by(without), moved_by(with_it)
    np.testing.assert_allclose(more["loss"] - logs["loss"], 0.1 * np.sum(kernel**2), rtol=1e-3)
    index = [v is with_it.actor.encoder.layers[0].kernel for v in with_it.trainable_variables]
    k = index.index(True)
    # One step of plain gradient descent at rate 1 on 0.1 Σ w².
    np.testing.assert_allclose(regularized[k] - plain[k], -0.2 * kernel, atol=1e-5)


@by_gradient
def test_add_loss_counts_for_the_rows_that_the_loss_is_of(algorithm):
    without, with_it = (built(algorithm, encoder(activity=a)) for a in (None, 0.1))
    rollout = make_rollout(with_it, 4, 8)
    features = with_it.actor.encoder(rollout.observations.reshape(-1, 3)).numpy()
    (_, logs), (_, more) = moved_by(without), moved_by(with_it)
    # Keras divides what an activity regularizer gives by the rows.
    expected = 0.1 * np.sum(features**2) / len(features)
    np.testing.assert_allclose(more["loss"] - logs["loss"], expected, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [keras_pg.A2C, keras_pg.PPO, keras_pg.MDPO])
@pytest.mark.parametrize("kind", ["l2", "activity"])
def test_what_actor_and_critic_share_counts_once(algorithm, kind):
    shared, plain = encoder(**{kind: 0.1}), encoder()
    agent, reference = built(algorithm, shared, shared), built(algorithm, plain, plain)
    once = sum(float(loss) for _, loss in layer_losses(agent.actor))
    if kind == "activity":
        rows = make_rollout(agent, 4, 8).observations.reshape(-1, 3)
        once = 0.1 * np.sum(shared(rows).numpy() ** 2) / len(rows)
    (_, logs), (_, more) = moved_by(reference), moved_by(agent)
    np.testing.assert_allclose(more["loss"] - logs["loss"], once, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [keras_pg.NPG, keras_pg.TRPO])
def test_losses_of_the_critic_count_where_the_actor_descends_none(algorithm):
    agents = [
        built(algorithm, encoder(), encoder(l2), critic_epochs=1, num_minibatches=1)
        for l2 in (None, 0.1)
    ]
    kernel = agents[1].critic.encoder.get_weights()[0]
    (plain, logs), (regularized, more) = map(moved_by, agents)
    place = len(agents[1].actor.trainable_variables)
    np.testing.assert_allclose(regularized[place] - plain[place], -0.2 * kernel, atol=1e-5)
    assert more["value_loss"] == pytest.approx(logs["value_loss"])


@pytest.mark.parametrize("algorithm", [keras_pg.NPG, keras_pg.TRPO])
@pytest.mark.parametrize("kind", ["l2", "activity"])
def test_losses_of_an_actor_that_descends_none_are_an_error(algorithm, kind):
    agent = algorithm(encoder(**{kind: 0.1}))
    with pytest.raises(ValueError, match=rf"dense\S* has a loss of its own.*{algorithm.__name__}"):
        agent.build(OBSERVATIONS, DISCRETE)


def test_losses_are_the_same_in_a_compiled_step():
    logs = []
    for eagerly in (True, False):
        agent = built(keras_pg.PPO, encoder(0.1, 0.1), encoder(0.1))
        logs.append(step(agent, make_rollout(agent, 4, 8), eagerly=eagerly)["loss"])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


# --------------------------------------------------------------- layers that move in training


@pytest.mark.parametrize(
    ("layer", "moved"),
    [
        (keras.layers.BatchNormalization(), 2),
        (keras.layers.SpectralNormalization(keras.layers.Dense(3)), 1),
        (keras.layers.BatchNormalization(trainable=False), 0),
        (keras.layers.LayerNormalization(), 0),
        (keras.layers.Dropout(0.5), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_layers_change_themselves_in_training(layer, moved):
    model = keras.Sequential([keras.Input((3,)), layer])
    before = model.get_weights()
    assert len(moved_in_training(model, (3,))) == moved
    for one, other in zip(before, model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_such_a_layer_is_named_with_what_to_use():
    layer = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(4)])
    with pytest.warns(UserWarning, match=r"norm/moving_variance.*LayerNormalization"):
        keras_pg.A2C(model, seed=0).build(OBSERVATIONS, DISCRETE)


def test_dropout_is_not_warned_of():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        keras_pg.A2C(model, seed=0).build(OBSERVATIONS, DISCRETE)


# ------------------------------------------------------------------------------ configurations


@every_algorithm
@pytest.mark.parametrize("is_built", [False, True])
def test_an_agent_is_made_anew_from_its_configuration(algorithm, is_built):
    agent = algorithm(gamma=0.9, seed=3)
    if is_built:
        agent.build(OBSERVATIONS, DISCRETE)
    other = algorithm.from_config(agent.get_config())
    assert type(other) is algorithm and other.gamma == 0.9 and (other.actor is not None) == is_built
    assert keras.saving.serialize_keras_object(other) == keras.saving.serialize_keras_object(agent)
    if is_built:
        assert other.actor is not agent.actor
        observation = np.zeros((1, 3), np.float32)
        assert other.predict(observation, verbose=0).shape == (1,)
        for mine, its in zip(agent.trainable_variables, other.trainable_variables):
            assert mine is not its and mine.shape == its.shape


def test_what_networks_share_is_shared_by_those_of_the_configuration():
    shared = encoder()
    agent = built(keras_pg.PPO, shared, shared)
    other = keras_pg.PPO.from_config(agent.get_config())
    assert other.actor.encoder is other.critic.encoder is not shared


@pytest.mark.parametrize(
    "network",
    [
        lambda: keras_pg.Actor(OBSERVATIONS, BOX, seed=0),
        lambda: keras_pg.Critic(OBSERVATIONS, encoder(), normalize_observations=False),
        lambda: keras_pg.ActionCritic(OBSERVATIONS, BOX, seed=0),
    ],
    ids=["Actor", "Critic", "ActionCritic"],
)
def test_a_network_is_made_anew_from_its_configuration(network):
    network = network()
    config = network.get_config()
    for _ in range(2):  # the configuration is not used up
        other = type(network).from_config(config)
        assert other.encoder is not network.encoder
        assert [v.shape for v in other.variables] == [v.shape for v in network.variables]


@pytest.mark.parametrize(("high", "refused"), [(1.0, False), (2.0, True)])
def test_actors_of_files_whose_actions_had_other_units_are_refused(high, refused):
    space = gymnasium.spaces.Box(-high, high, (2,))
    config = keras_pg.Actor(OBSERVATIONS, space, seed=0).get_config()
    del config["action_units"]
    expected = (
        pytest.raises(ValueError, match="train it again") if refused else (contextlib.nullcontext())
    )
    with expected:
        keras_pg.Actor.from_config(config)


def test_weights_load_into_an_agent_that_was_never_built(tmp_path):
    agent = built(keras_pg.A2C, None)
    agent.save_weights(tmp_path / "a.weights.h5")
    other = keras_pg.A2C(normalize_observations=False, seed=9)
    other.load_weights(tmp_path / "a.weights.h5")
    for one, same in zip(agent.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)


def test_a_file_without_weights_leaves_an_agent_unbuilt(tmp_path):
    agent = keras_pg.A2C(seed=0)
    with pytest.raises(FileNotFoundError):
        agent.load_weights(tmp_path / "none.weights.h5")
    with pytest.raises(ValueError, match="no networks yet"):
        agent.act(np.zeros(3))
    agent.build(OBSERVATIONS, DISCRETE)
    assert agent.act(np.zeros(3)).item() in range(3)


# ---------------------------------------------------------------------------- names and shapes


@pytest.mark.parametrize("given", [False, True])
def test_paths_of_variables_begin_with_the_network(tmp_path, given):
    agent = built(keras_pg.PPO, encoder() if given else None, action_space=BOX)
    agent.save(tmp_path / "agent.keras")
    for each in (agent, keras.models.load_model(tmp_path / "agent.keras")):
        assert {v.path.partition("/")[0] for v in each.actor.variables} == {"actor"}
        assert {v.path.partition("/")[0] for v in each.critic.variables} == {"critic"}
        paths = [v.path for v in each.variables]
        assert len(set(paths)) == len(paths)


def test_default_networks_have_the_same_paths_once_loaded(tmp_path):
    agent = keras_pg.PPO(seed=0)
    agent.build(OBSERVATIONS, BOX)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in agent.trainable_variables
    ]
    assert "actor/encoder/dense_1/kernel" in [v.path for v in agent.variables]


def test_the_summary_shows_the_shapes():
    agent = keras_pg.PPO(normalize_rewards=True, seed=0)
    agent.build(OBSERVATIONS, BOX)
    lines = []
    agent.summary(print_fn=lines.append, expand_nested=True)
    text = "\n".join(lines)
    assert "?" not in text
    # Of features, parameters of a Gaussian of two dimensions, values, and observations.
    for shape in ("(None, 64)", "(None, 4)", "(None)", "(None, 3)"):
        assert shape in text


def test_networks_are_parts_of_functional_models():
    agent = built(keras_pg.PPO, None, action_space=BOX)
    observations = keras.Input((3,))
    model = keras.Model(observations, [agent.actor(observations), agent.critic(observations)])
    x = np.ones((5, 3), np.float32)
    parameters, values = model(x)
    assert model.output_shape == [(None, 4), (None,)]
    np.testing.assert_array_equal(parameters, agent.actor(x))
    np.testing.assert_array_equal(values, agent.critic(x))


def test_an_encoder_whose_configuration_has_no_name_is_saved_and_loaded(tmp_path):
    agent = keras_pg.A2C(Nameless(), seed=0)
    agent.build(OBSERVATIONS, DISCRETE)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    np.testing.assert_array_equal(loaded.act(np.ones(3)), agent.act(np.ones(3)))


# ------------------------------------------------------------------- what is asked of an agent


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda a: a.evaluate(), TypeError, r'agent\.evaluate\("CartPole-v1", episodes=20\)'),
        (lambda a: a.evaluate("CartPole-v1", episode=3), TypeError, "no argument 'episode'"),
        (lambda a: a.train_on_batch([1.0], [1.0]), TypeError, r"A2C\.fit\(env, epochs=1"),
        (lambda a: a.test_on_batch([1.0]), TypeError, "evaluate"),
        (lambda a: a.compute_loss(1, 2), NotImplementedError, "Rollout.*train_step"),
        (lambda a: a.fit("CartPole-v1", total_timestep=9), TypeError, "A2C.*'total_timesteps'"),
        (lambda a: a.fit([1.0], [2.0]), TypeError, "A2C.fit: too many positional arguments"),
        (lambda a: a.compile(optimiser="adam"), TypeError, "A2C.compile.*'optimizer'"),
    ],
)
def test_what_an_agent_is_asked_wrongly_it_answers_with_what_it_wants(call, kind, message):
    with pytest.raises(kind, match=message):
        call(keras_pg.A2C(seed=0))


class Mine(keras_pg.PPO):
    """A user's own."""

    def __init__(self, *arguments, temperature=1.0, **settings):
        super().__init__(*arguments, **settings)
        self.temperature = temperature


@pytest.mark.parametrize(
    ("algorithm", "arguments", "message"),
    [
        (keras_pg.TRPO, {"gama": 0.9}, "TRPO has no argument 'gama': did you mean 'gamma'"),
        (keras_pg.NPG, {"cg_itters": 3}, "NPG has no argument 'cg_itters': .*'cg_iters'"),
        (keras_pg.REINFORCE, {"gae_lamda": 1}, "REINFORCE .*'gae_lambda'"),
        (keras_pg.MDPO, {"stepsize": 1}, "MDPO .*'step_size'"),
        (keras_pg.GRPO, {"value_coeff": 1}, "GRPO has no argument 'value_coeff'"),
        (Mine, {"temprature": 1}, "Mine .*'temperature'"),
        (keras_pg.PPO, {"num_envs": 4}, "'num_envs' is an argument of PPO.fit"),
        (keras_pg.PPO, {"learning_rate": 1e-3}, "the learning rate is the optimizer's"),
        (keras_pg.PPO, {"zzz": 1}, r"PPO has no argument 'zzz'\."),
    ],
)
def test_a_mistyped_argument_is_answered_with_the_nearest(algorithm, arguments, message):
    with pytest.raises(TypeError, match=message):
        algorithm(**arguments)


@pytest.mark.parametrize(
    ("networks", "line"),
    [
        (("CartPole-v1",), r'PPO\(\)\.fit\("CartPole-v1"\)'),
        (("MlpPolicy", "Pendulum-v1"), r'PPO\(\)\.fit\("CartPole-v1"\)'),
        ((None, "Pendulum-v1"), r'critic=.*PPO\(\)\.fit\("Pendulum-v1"\)'),
    ],
)
def test_an_environment_in_place_of_a_network_is_told_where_it_goes(networks, line):
    with pytest.raises(TypeError, match=line):
        keras_pg.PPO(*networks)


@pytest.mark.parametrize("log_std_init", [-21.0, 2.1, float("nan")])
def test_a_deviation_that_would_be_cut_is_refused(log_std_init):
    with pytest.raises(ValueError, match=r"log_std_init must be a number in \[-20"):
        keras_pg.Actor(OBSERVATIONS, BOX, log_std_init=log_std_init)


@pytest.mark.parametrize(("low", "high"), [(-1000, 1000), (500, 1000), (-0.01, 0.01)])
def test_a_new_policy_begins_in_the_middle_of_its_box_and_as_wide_as_it(low, high):
    agent = built(keras_pg.A2C, None, action_space=gymnasium.spaces.Box(low, high, (1,)))
    observation = np.zeros((4000, 3), np.float32)
    assert agent.act(observation[0]) == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    actions = agent.act(observation, deterministic=False)
    # A Gaussian of deviation 1 in units of the half width, cut at ±1: a third lies at the bounds.
    at_bounds = np.mean((actions == np.float32(low)) | (actions == np.float32(high)))
    assert at_bounds == pytest.approx(0.317, abs=0.03)


# ------------------------------------------------------------------------------------ episodes


def test_evaluate_tells_of_every_episode_when_asked_to():
    agent = keras_pg.A2C(seed=0)
    means = agent.evaluate("CartPole-v1", 6, verbose=0)
    found = agent.evaluate("CartPole-v1", 6, verbose=0, return_episodes=True)
    assert set(means) == {"episode_return", "episode_length"} and means.items() <= found.items()
    returns, lengths = found["episode_returns"], found["episode_lengths"]
    assert returns.shape == lengths.shape == (6,) and lengths.dtype == np.int32
    np.testing.assert_array_equal(returns, lengths)
    assert found["episode_return"] == pytest.approx(returns.mean())
    assert found["episode_return_std"] == pytest.approx(returns.std())
    assert found["episode_length_std"] == pytest.approx(lengths.std())
    assert agent.evaluation()["episode_return"] == means["episode_return"]


# --------------------------------------------------------------------------------- TensorBoard


def scalars(directory):
    """{tag: steps} of a TensorBoard run."""
    found = {}
    for path in sorted(directory.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_tensorboard_writes_against_environment_steps(tmp_path):
    board = keras_pg.callbacks.TensorBoard(tmp_path, histogram_freq=2, update_freq=2)
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)
    with contextlib.redirect_stdout(io.StringIO()):
        agent.fit(
            "CartPole-v1",
            epochs=3,
            steps_per_epoch=2,
            validation_env="CartPole-v1",
            validation_episodes=1,
            callbacks=[board],
        )
    train, validation = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    assert train["epoch_episode_return"] == train["epoch_learning_rate"] == [80, 160, 240]
    assert validation["epoch_episode_return"] == [80, 160, 240]
    assert train["batch_loss"] == [80, 160, 240]  # every second iteration
    assert train["actor/encoder/dense_1/kernel/histogram"] == [80, 240]
    assert train["critic/head/kernel/histogram"] == [80, 240]
    assert (board.histogram_freq, board.embeddings_freq) == (2, 0)
