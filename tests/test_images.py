"""Observations that are images: how networks see them, and that agents learn from them."""

import itertools
import warnings

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.wrappers import FrameStackObservation

import keras_pg
from keras_pg import ActionCritic, Actor, Critic, cnn, mlp, spaces
from keras_pg.encoders import Conv2D, _convolution_by_patches, has_slow_gradient
from keras_pg.rollouts.acting import CompiledEngine, LiteRTEngine, engine_for

BYTES = Box(0, 255, (12, 10, 3), np.uint8)


def images(space, count=5, seed=0):
    space.seed(seed)
    return np.stack([space.sample() for _ in range(count)])


def seen_by_encoder(space, observations, **settings):
    """What the encoder gets of the observations."""
    encoder = keras.Sequential([keras.layers.Flatten()])
    actor = Actor(space, Discrete(2), encoder, **settings)
    return actor, actor.features(observations).numpy()


# ------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("space", "darkest", "brightest"),
    [
        (BYTES, 0, 255),
        (Box(0, 1, (4, 4, 2), np.uint8), 0, 1),
        (Box(0, 1, (4, 4, 2), bool), False, True),
        (Box(-1.0, 1.0, (4, 4, 2)), -1.0, 1.0),
        (Box(0, 65535, (4, 4, 1), np.uint16), 0, 65535),
        (Box(-128, 127, (4, 4, 1), np.int8), -128, 127),
    ],
    ids=str,
)
def test_bounds_of_an_image_become_0_and_1_whatever_was_seen(space, darkest, brightest):
    for value, expected in ((darkest, 0.0), (brightest, 1.0)):
        observations = np.full((3, *space.shape), value, space.dtype)
        actor, seen = seen_by_encoder(space, observations)
        assert actor.normalization is None
        np.testing.assert_array_equal(seen, np.full((3, np.prod(space.shape)), expected))
    actor.update_normalization(observations, np.ones(3, bool))


def test_an_image_in_between_is_seen_in_proportion():
    observations = images(BYTES)
    _, seen = seen_by_encoder(BYTES, observations)
    np.testing.assert_allclose(seen, observations.reshape(5, -1) / 255.0, atol=1e-7)


@pytest.mark.parametrize("make", [Actor, Critic, ActionCritic], ids=lambda make: make.__name__)
def test_channels_may_come_first(make):
    """As from `FrameStackObservation` of grey images: the same policy, for the image transposed."""
    last, first = Box(0, 255, (12, 10, 3), np.uint8), Box(0, 255, (3, 12, 10), np.uint8)
    arguments = [] if make is Critic else [Box(-1, 1, (2,))]
    one, other = (make(space, *arguments, seed=0) for space in (last, first))
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        assert mine.shape == theirs.shape
    observations = images(last)
    actions = [np.ones((5, 2), np.float32)] if make is ActionCritic else []
    np.testing.assert_array_equal(
        one(observations, *actions), other(observations.transpose(0, 3, 1, 2), *actions)
    )


def test_grey_images_have_a_channel_and_other_matrices_are_vectors():
    grey, frames = Box(0, 255, (12, 10), np.uint8), Box(-np.inf, np.inf, (4, 3))
    actor = Actor(grey, Discrete(2), seed=0)
    with_channel = Actor(Box(0, 255, (12, 10, 1), np.uint8), Discrete(2), seed=0)
    observations = images(grey)
    np.testing.assert_array_equal(actor(observations), with_channel(observations[..., None]))

    rows = np.random.default_rng(0).normal(3.0, 2.0, (100, 4, 3)).astype(np.float32)
    actor = Actor(frames, Discrete(2), seed=0)
    actor.update_normalization(rows, np.ones(100, bool))
    flat = Actor(Box(-np.inf, np.inf, (12,)), Discrete(2), seed=0)
    flat.update_normalization(rows.reshape(100, 12), np.ones(100, bool))
    np.testing.assert_allclose(actor(rows), flat(rows.reshape(100, 12)), atol=1e-6)
    assert np.abs(actor._preprocessed(rows).numpy().mean(axis=0)).max() < 1e-5


def test_the_default_network_is_chosen_by_the_size():
    def convolutions(shape):
        encoder = Actor(Box(0, 255, shape, np.uint8), Discrete(2)).encoder
        return [
            (layer.filters, *layer.kernel_size[:1], *layer.strides[:1])
            for layer in encoder.layers
            if isinstance(layer, Conv2D)
        ]

    deep = [(32, 8, 4), (64, 4, 2), (64, 3, 1)]
    assert convolutions((36, 36, 1)) == convolutions((4, 84, 84)) == deep
    assert convolutions((35, 84, 3)) == convolutions((10, 10, 4)) == [(16, 3, 1)]
    assert convolutions((2, 9, 9)) == [(16, 3, 1)] and convolutions((9, 2, 2)) == []


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, np.inf, (8, 8, 3)),
        Box(0, np.inf, (8, 8, 3)),
        Box(np.zeros((3, 3, 2), np.float32), np.arange(1, 19, dtype=np.float32).reshape(3, 3, 2)),
        Box(1.0, 1.0, (3, 3, 2)),
        Box(-(2**31), 2**31 - 1, (8, 8, 3), np.int32),
        Box(0.0, float(np.finfo(np.float32).max), (8, 8, 3)),
        Box(1e9, 1e9 + 128, (8, 8, 3), np.float64),
    ],
    ids=str,
)
def test_an_image_without_common_bounds_is_refused_by_name(space):
    with pytest.raises(ValueError, match="taken for images") as error:
        spaces.check_observation_space(space)
    assert str(space) in str(error.value) and "FlattenObservation" in str(error.value)


def test_stacks_of_images_are_refused():
    with pytest.raises(ValueError, match="rank 1 to 3"):
        Actor(Box(0, 255, (4, 8, 8, 3), np.uint8), Discrete(2))


@pytest.mark.parametrize("encoder", [mlp((8,)), keras.Sequential([Conv2D(4, 3)])])
def test_an_encoder_without_flatten_is_refused(encoder):
    with pytest.raises(ValueError, match=r"expected \[B, F\]: a `keras.layers.Flatten`"):
        Critic(BYTES, encoder)


@pytest.mark.parametrize(
    "action_space",
    [Box(-1, 1, (2,)), MultiDiscrete([2, 3], start=[1, 0]), MultiBinary(3)],
    ids=str,
)
def test_actions_are_channels_beside_an_image(action_space):
    critic = ActionCritic(BYTES, action_space, keras.Sequential([keras.layers.Flatten()]), seed=0)
    observations = images(BYTES, count=2)
    critic.head.set_weights(
        [np.random.default_rng(0).normal(size=w.shape) for w in critic.head.weights]
    )
    kernel, bias = critic.head.get_weights()
    for i in range(4):
        action_space.seed(i)
        action = action_space.sample()
        if isinstance(action_space, MultiDiscrete):
            numbers = np.concatenate([np.eye(n)[k] for n, k in zip([2, 3], action - [1, 0])])
        else:
            numbers = action
        planes = np.broadcast_to(numbers, (2, 12, 10, len(numbers)))
        seen = np.concatenate([observations / 255.0, planes], axis=-1).reshape(2, -1)
        values = critic(observations, np.stack([action, action]))
        np.testing.assert_allclose(values, (seen @ kernel + bias)[:, 0], rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize(
    ("shape", "num_envs", "engine"),
    [
        ((10, 10, 4), 8, LiteRTEngine),
        ((10, 10, 4), 200, CompiledEngine),  # 64 x 36 x 16 products a board
        ((4, 84, 84), 1, CompiledEngine),
    ],
    ids=str,
)
def test_the_engine_that_acts_is_the_faster_for_so_many_products(shape, num_envs, engine):
    actor = Actor(Box(0, 255, shape, np.uint8), Box(-1, 1, (2,)), seed=0)
    chosen = engine_for(actor, num_envs)
    assert type(chosen) is engine
    chosen.load_weights()
    observations = images(actor.observation_space, num_envs)
    noise = actor.action_distribution.draw_noise(np.random.default_rng(0), (num_envs,))
    expected = actor.action_distribution.sample(actor(observations), noise)
    np.testing.assert_allclose(chosen(observations, noise)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 10, 4), (21, 20, 2), (36, 37, 1)], ids=str)
@pytest.mark.parametrize(
    ("kernel", "strides"),
    [((3, 3), (1, 1)), ((8, 8), (4, 4)), ((4, 4), (2, 2)), ((2, 3), (3, 1)), ((5, 1), (2, 5))],
    ids=str,
)
def test_a_convolution_by_patches_is_one_and_so_is_its_gradient(size, kernel, strides):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(3, *size)))
    w = tf.constant(rng.normal(size=(*kernel, size[-1], 5)))

    def of(function):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = function(x, w)
            total = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(total, [x, w])]

    ours = of(lambda x, w: _convolution_by_patches(x, w, strides))
    theirs = of(lambda x, w: tf.nn.conv2d(x, w, strides, "VALID"))
    for mine, peer in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, peer, rtol=1e-9, atol=1e-9)


def operations(function, *arguments):
    graph = function.get_concrete_function(*arguments).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize(
    ("settings", "by_patches"),
    [
        ({}, True),
        ({"strides": 2}, True),
        ({"padding": "same"}, True),
        ({"padding": "same", "strides": 3}, True),
        ({"padding": "same", "strides": (4, 1), "kernel_size": (2, 4)}, True),
        ({"dilation_rate": 2}, False),
        ({"groups": 2}, False),
    ],
    ids=str,
)
def test_only_xla_is_given_patches(settings, by_patches):
    settings = {"kernel_size": 3, **settings}
    layer, x = Conv2D(4, **settings), tf.random.stateless_normal((2, 9, 9, 2), [0, 0])
    keras_own = keras.layers.Conv2D(4, **settings)
    assert layer.has_patches == by_patches
    for convolution in (layer, keras_own):
        convolution.build(x.shape)
    keras_own.set_weights(layer.get_weights())
    expected = keras_own(x)
    graph, xla = (tf.function(layer, jit_compile=jit) for jit in (False, True))
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    np.testing.assert_allclose(graph(x), expected, atol=1e-5)
    np.testing.assert_allclose(xla(x), expected, atol=1e-5)
    assert "MatMul" not in operations(graph, x)
    assert ("MatMul" in operations(xla, x)) == by_patches
    # Also within a loop, as gradient steps are.
    loop = tf.function(
        lambda x: tf.while_loop(
            lambda i, y: i < 2, lambda i, y: (i + 1, y + tf.reduce_sum(layer(x))), (0, 0.0)
        ),
        jit_compile=True,
    )
    body = next(
        function
        for name, function in loop.get_concrete_function(x).graph._functions.items()
        if "body" in str(name)
    )
    types = {node.op for node in body.cached_definition.node_def}
    assert ("MatMul" in types) == by_patches


@pytest.mark.parametrize("jit_compile", [True, False])
def test_slow_convolutions_are_warned_of_where_xla_would_compile_them(jit_compile):
    class Halt(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise KeyboardInterrupt

    encoder = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.Flatten()])
    agent = keras_pg.REINFORCE(keras.Sequential([encoder]), seed=0)
    agent.compile(jit_compile=jit_compile)
    with warnings.catch_warnings(record=True) as warned, pytest.raises(KeyboardInterrupt):
        agent.fit(keras_pg.envs.Catch(), total_timesteps=1000, callbacks=[Halt()], verbose=0)
    assert sum("keras_pg.Conv2D" in str(w.message) for w in warned) == jit_compile


@pytest.mark.parametrize("settings", [{"dilation_rate": 2}, {"groups": 2}], ids=str)
def test_our_own_are_warned_of_too_where_they_are_not_of_patches(settings):
    images = keras.Input((9, 9, 2))
    for layer, slow in ((Conv2D(4, 3), False), (Conv2D(4, 3, **settings), True)):
        assert has_slow_gradient(keras.Model(images, layer(images))) == slow


def test_networks_of_images_are_saved_and_their_seeds_repeat_them(tmp_path):
    one, other = (keras_pg.PPO(seed=3) for _ in range(2))
    for agent in (one, other):
        agent.build(BYTES, Discrete(3))
    observations = images(BYTES)
    np.testing.assert_array_equal(one.actor(observations), other.actor(observations))
    one.save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    assert isinstance(loaded.actor.encoder.layers[0], Conv2D)
    np.testing.assert_array_equal(one.actor(observations), loaded.actor(observations))
    assert (tmp_path / "agent.keras").stat().st_size < 3e6


def test_a_cnn_has_the_layers_that_are_asked_for():
    encoder = cnn(((4, 3, 2), (2, 2, 1)), (16, 8), seed=0)
    assert encoder(images(BYTES) / 255.0).shape == (5, 8)
    kernels = [layer.kernel.shape for layer in encoder.layers if layer.weights]
    assert kernels == [(3, 3, 3, 4), (2, 2, 4, 2), (4 * 3 * 2, 16), (16, 8)]


# ---------------------------------------------------------------------------------- as trained


class Lights(gymnasium.Env):
    """One of three lights is on, in a grey image; the action that names it pays 1."""

    observation_space = Box(0, 255, (6, 7), np.uint8)
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.on, self.steps = int(self.np_random.integers(3)), 0
        return self._image(), {}

    def _image(self):
        image = np.zeros((6, 7), np.uint8)
        image[1:4, 2 * self.on : 2 * self.on + 2] = 200
        return image

    def step(self, action):
        reward = float(action == self.on)
        self.on, self.steps = int(self.np_random.integers(3)), self.steps + 1
        return self._image(), reward, False, self.steps == 20, {}


@pytest.mark.slow
def test_images_of_a_gymnasium_environment_are_learnt_from(tmp_path):
    agent = keras_pg.PPO(seed=0)
    agent.compile(keras.optimizers.Adam(1e-3))
    agent.fit(Lights, num_envs=4, num_steps=64, total_timesteps=8_000, verbose=0)
    assert agent.evaluate(Lights, episodes=10, verbose=0)["episode_return"] == 20
    assert keras_pg.saved_model.verify(agent.export(tmp_path / "lights"))["equal"]


@pytest.mark.slow
def test_an_environment_of_images_that_nobody_here_wrote(tmp_path):
    import minatar.gym

    minatar.gym.register_envs()
    agent = keras_pg.A2C(seed=0)
    agent.fit("MinAtar/SpaceInvaders-v1", num_envs=4, epochs=1, steps_per_epoch=3, verbose=0)
    assert agent.actor.observation_space.dtype == bool
    assert keras_pg.saved_model.verify(agent.export(tmp_path / "invaders"))["equal"]


AGENTS = {
    "REINFORCE": {},
    "A2C": {"advantage": "advantage"},
    "NPG": {},
    "TRPO": {},
    "PPO": {"num_minibatches": 2, "update_epochs": 2},
    "MDPO": {"num_minibatches": 2, "update_epochs": 2},
    "GRPO": {"group_size": 2, "num_minibatches": 2, "update_epochs": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_learns_the_same_from_images_compiled_or_not(name):
    """In XLA convolutions are products of patches, also under forward-mode differentiation."""

    def made():
        encoder = cnn([(4, 3, 1)], (8,), "tanh", seed=0)
        return getattr(keras_pg, name)(encoder, seed=0, **AGENTS[name])

    agents = []
    for jit_compile in (True, False):
        agent = made()
        agent.compile(keras.optimizers.SGD(0.1), jit_compile=jit_compile)
        agent.fit(
            keras_pg.envs.Catch(4, 3),
            num_envs=4,
            num_steps=8,
            epochs=1,
            steps_per_epoch=2,
            verbose=0,
        )
        agents.append(agent)
    first = made()
    first.build(agent.actor.observation_space, agent.actor.action_space)
    moved = 0.0
    for x, y, z in zip(*(a.actor.trainable_variables for a in (*agents, first)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
        moved = max(moved, np.abs(x - z).max())
    assert moved > 1e-3


def test_stacked_vectors_are_learnt_from():
    agent = keras_pg.A2C(seed=0)
    agent.compile(jit_compile=False)
    agent.fit(
        lambda: FrameStackObservation(gymnasium.make("CartPole-v1"), 3),
        num_envs=2,
        num_steps=8,
        epochs=1,
        steps_per_epoch=2,
        verbose=0,
    )
    assert agent.actor.observation_space.shape == (3, 4)
    assert agent.actor.normalization.mean.shape == (3, 4)


# --------------------------------------------------------------------------------- native games


def seeds(n, call):
    return tf.stack([tf.range(n, dtype=tf.int64), tf.fill([n], tf.constant(call, tf.int64))], -1)


def test_a_step_of_breakout_is_minatars():
    """Episodes of players that follow the ball, some badly, beside the authors' own program."""
    from minatar.environments.breakout import Env

    env, n, rng = keras_pg.envs.Breakout(sticky_actions=0.0), 12, np.random.default_rng(0)
    state, theirs = env.reset(seeds(n, 0)), [Env() for _ in range(n)]

    def begin(which, state):
        for i in which:
            theirs[i].reset()
            theirs[i].ball_x = theirs[i].last_x = int(state["x"][i])
            theirs[i].ball_dir = 2 if theirs[i].ball_x == 0 else 3

    begin(range(n), state)
    step = tf.function(lambda state, a, seeds: (*env.step(state, a, seeds), env.reset(seeds)))
    observe = tf.function(env.observe)
    broken, ends, walls = 0, 0, np.zeros(n, int)
    for t in range(1, 1200):
        peers = np.stack([peer.state() for peer in theirs])
        np.testing.assert_array_equal(observe(state), peers)
        ball = np.array([peer.ball_x for peer in theirs])
        paddle = np.array([peer.pos for peer in theirs])
        follow = 1 * (ball < paddle) + 2 * (ball > paddle)
        at_random = rng.random(n) < np.linspace(0.0, 0.2, n)
        actions = np.where(at_random, rng.integers(0, 3, n), follow)
        state, rewards, over, first = step(state, tf.constant(actions), seeds(n, t))
        expected = [peer.act([0, 1, 3][a]) for peer, a in zip(theirs, actions)]
        np.testing.assert_array_equal(rewards, [reward for reward, _ in expected])
        np.testing.assert_array_equal(over, [done for _, done in expected])
        broken += int(np.sum(rewards))
        walls += ~np.any(peers[..., 3], axis=(1, 2))
        ends += int(np.sum(over))
        state = {
            name: tf.where(tf.reshape(over, [-1] + [1] * (len(x.shape) - 1)), first[name], x)
            for name, x in state.items()
        }
        begin(np.flatnonzero(over), state)
    assert broken > 1000 and ends > 100 and walls.sum() > 3


def test_sticky_actions_of_breakout_are_as_many_as_said():
    env, n = keras_pg.envs.Breakout(sticky_actions=0.25), 4000
    state, moved = env.reset(seeds(n, 0)), []
    for t in range(1, 4):
        before = state["paddle"]
        state, *_ = env.step(state, tf.fill([n], tf.constant(1, tf.int64)), seeds(n, t))
        moved.append(np.mean(before - state["paddle"]))
    # It stays where it is while the first action, to stay, is repeated.
    np.testing.assert_allclose(moved, [1 - 0.25**t for t in (1, 2, 3)], atol=0.03)


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (4, 7), (2, 1)])
def test_catch_pays_who_is_under_the_ball(rows, columns):
    env, n = keras_pg.envs.Catch(rows, columns), 64
    first = env.reset(seeds(n, 0))
    assert len(np.unique(first["column"])) == columns
    for player, payment in (("catches", 1.0), ("stays", None)):
        state, total = first, np.zeros(n)
        for t in range(1, rows):
            board = env.observe(state).numpy()[..., 0]
            assert board.shape == (n, rows, columns)
            paddle = state["paddle"].numpy()
            expected = np.zeros_like(board)
            expected[range(n), t - 1, state["column"]] = expected[range(n), -1, paddle] = 1
            np.testing.assert_array_equal(board, expected)
            actions = 1 + np.sign(state["column"] - paddle) * (player == "catches")
            state, rewards, over = env.step(state, tf.constant(actions), None)
            total += rewards
            np.testing.assert_array_equal(over, np.full(n, t == rows - 1))
        if payment is None:
            payment = np.where(first["column"] == columns // 2, 1.0, -1.0)
        np.testing.assert_array_equal(total, np.broadcast_to(payment, n))


def test_a_ball_that_nobody_could_catch_is_refused():
    with pytest.raises(ValueError, match="rows must be at least 5, received 4"):
        keras_pg.envs.Catch(rows=4, columns=8)


@pytest.mark.slow
def test_ppo_catches_every_ball():
    agent = keras_pg.PPO(seed=0)
    agent.compile(keras.optimizers.Adam(1e-3), steps_per_execution=5)
    env = keras_pg.envs.Catch()
    agent.fit(env, num_envs=64, num_steps=16, total_timesteps=30_000, verbose=0)
    assert agent.evaluate(env, episodes=500, num_envs=100, verbose=0)["episode_return"] == 1.0


# ------------------------------------------------------------------------------------- stacking


@pytest.mark.parametrize("name", ["Catch-v0", "TMaze-v0"])
def test_a_stack_is_gymnasiums(name):
    """The same episodes, frame by frame, but for the axis along which frames lie."""
    inner, k = keras_pg.envs.make(f"keras_pg/{name}"), 3
    ours = keras_pg.envs.gymnasium_adapter.NativeSingleEnv(keras_pg.envs.FrameStack(inner, k))
    theirs = FrameStackObservation(keras_pg.envs.gymnasium_adapter.NativeSingleEnv(inner), k)
    for seed in range(3):
        one, other = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
        for action in itertools.islice(itertools.cycle([2, 0, 1, 1]), 40):
            np.testing.assert_array_equal(one, np.concatenate(other, axis=-1))
            one, *mine = ours.step(action)
            other, *peers = theirs.step(action)
            assert mine == peers
            if mine[1]:
                break


def test_only_boxes_are_stacked_once_or_more():
    stack = keras_pg.envs.FrameStack(keras_pg.envs.Catch(), 2)
    assert keras_pg.envs.FrameStack(stack, 2).observation_space.shape == (10, 5, 4)
    masked = keras_pg.envs.Catch()
    masked.observation_space = Dict(observation=BYTES, action_mask=MultiBinary(3))
    for env in (keras_pg.envs.Gridworld(), masked):
        with pytest.raises(ValueError, match="Only observations of a Box"):
            keras_pg.envs.FrameStack(env, 2)


def painted(shape, image):
    """Catch, whose board [N, 10, 5, 1] is seen as other images of bytes."""

    class Painted(keras_pg.envs.Catch):
        def observe(self, state):
            return image(255 * super().observe(state))

    env = Painted()
    env.observation_space = Box(0, 255, shape, np.uint8)
    return env


@pytest.mark.parametrize(
    ("shape", "image", "stacked", "axis"),
    [
        ((10, 5), lambda x: x[..., 0], (10, 5, 3), -1),
        ((1, 10, 5), lambda x: tf.transpose(x, [0, 3, 1, 2]), (3, 10, 5), 0),
        ((10, 5, 1), lambda x: x, (10, 5, 3), -1),
    ],
    ids=["grey", "channels first", "channels last"],
)
def test_images_are_stacked_along_their_channels(shape, image, stacked, axis):
    plain = keras_pg.envs.Catch()
    env = keras_pg.envs.FrameStack(painted(shape, image), 3)
    assert env.observation_space == Box(0, 255, stacked, np.uint8)
    assert spaces.has_channels_first(env.observation_space) == (axis == 0)
    state, board = env.reset(seeds(2, 0)), plain.reset(seeds(2, 0))
    seen = [plain.observe(board)] * 3
    for k in range(1, 5):
        frames = 255 * np.concatenate(seen[-3:], axis=-1)
        found = env.observe(state).numpy()
        np.testing.assert_array_equal(np.moveaxis(found, 1, -1) if axis == 0 else found, frames)
        actions = tf.constant([k % 3, 1], tf.int64)
        state, *_ = env.step(state, actions, seeds(2, k))
        board, *_ = plain.step(board, actions, seeds(2, k))
        seen.append(plain.observe(board))


def test_a_stack_whose_channels_would_be_taken_for_rows_is_refused():
    env = painted((1, 10, 5), lambda x: tf.transpose(x, [0, 3, 1, 2]))
    assert keras_pg.envs.FrameStack(env, 4).observation_space.shape == (4, 10, 5)
    with pytest.raises(ValueError, match=r"stack_size=5 .*\(5, 10, 5\)"):
        keras_pg.envs.FrameStack(env, 5)
    with pytest.raises(TypeError, match="FrameStackObservation"):
        keras_pg.envs.FrameStack(gymnasium.make("CartPole-v1"), 2)


@pytest.mark.slow
def test_a_stack_that_reaches_back_to_the_start_solves_the_maze():
    """Which no policy without memory can: 1.95 is the most it gets."""
    env = keras_pg.envs.FrameStack(keras_pg.envs.TMaze(length=4), 6)
    env.max_episode_steps = 20
    agent = keras_pg.PPO(seed=0, entropy_coef=0.02)
    agent.compile(keras.optimizers.Adam(1e-3), steps_per_execution=10)
    agent.fit(env, num_envs=64, num_steps=32, total_timesteps=160_000, verbose=0)
    result = agent.evaluate(env, episodes=1000, num_envs=500, verbose=0)
    assert result["episode_return"] > 3.9
