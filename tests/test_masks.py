"""Masks of legal actions: what is illegal has probability 0, in training and wherever it is served.

The environment here raises when an illegal action is taken.
"""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import keras_pg
from environments import perturbed_agent
from keras_pg import replay
from keras_pg.rollouts.acting import CompiledEngine, LiteRTEngine
from keras_pg.rollouts.serial_env import SerialVectorEnv
from keras_pg.rollouts.vector_env import VectorEnvCollector
from keras_pg.wrappers import ActionMask
from policies import rows, some_slow

OBSERVATIONS = Box(-np.inf, np.inf, (3,))
ACTIONS = {"discrete": Discrete(4, start=2), "components": MultiDiscrete([2, 3])}
SIZES = {"discrete": [4], "components": [2, 3]}


class Turnstile(gymnasium.Env):
    """Which actions are legal changes with every step; an illegal one is an error.

    The reward is the first number of the observation plus the action's first component. An episode
    lasts 3 steps, and then 5; its last state leaves no action, as there is none to take.
    """

    def __init__(self, kind="discrete", dead_end=None):
        self.action_space, self.sizes = ACTIONS[kind], SIZES[kind]
        self.dead_end = dead_end
        self.observation_space = Dict(
            observation=OBSERVATIONS, action_mask=MultiBinary(sum(self.sizes))
        )
        self.episode = -1

    def _observe(self, over=False):
        rng = np.random.default_rng([self.seed, self.episode, self.t])
        parts = [rng.integers(0, 2, n) for n in self.sizes]
        for part in parts:
            part[rng.integers(len(part))] = 1
        self.mask = np.concatenate(parts).astype(np.int8)
        if over or self.t == self.dead_end:
            self.mask[:] = 0
        observed = rng.normal(size=3).astype(np.float32)
        return {"observation": observed, "action_mask": self.mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.t = 0
        self.latest = self._observe()
        return self.latest, {}

    def step(self, action):
        choices = np.atleast_1d(action) - getattr(self.action_space, "start", 0)
        starts = np.cumsum([0, *self.sizes[:-1]])
        if not self.mask[starts + choices].all():
            raise ValueError(f"illegal action {action}: {self.mask}")
        reward = float(self.latest["observation"][0] + choices[0])
        self.t += 1
        over = self.t == (5 if self.episode % 2 else 3)
        self.latest = self._observe(over)
        return self.latest, reward, over, False, {}


def masks(kind, count=1000, seed=0):
    """Random masks that leave a choice in every component."""
    rng, parts = np.random.default_rng(seed), []
    for n in SIZES[kind]:
        part = rng.integers(0, 2, (count, n))
        part[np.arange(count), rng.integers(0, n, count)] = 1
        parts.append(part)
    return np.concatenate(parts, axis=-1).astype(np.int8)


def observations_of(kind, count=1000, seed=0):
    observed = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    return {"observation": observed, "action_mask": masks(kind, count, seed)}


def legal(kind, action_mask, actions):
    """Whether each env-ready action is legal, bool [B]."""
    choices = np.reshape(actions - getattr(ACTIONS[kind], "start", 0), (len(actions), -1))
    starts = np.cumsum([0, *SIZES[kind][:-1]])
    return np.take_along_axis(action_mask, starts + choices, axis=-1).all(axis=-1)


def agent_of(kind, **options):
    return perturbed_agent(Turnstile(kind).observation_space, ACTIONS[kind], **options)


# ------------------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("kind", ACTIONS)
def test_what_is_illegal_has_probability_0_and_no_gradient(kind):
    agent = agent_of(kind)
    policy, observations = agent.actor.action_distribution, observations_of(kind)
    mask = observations["action_mask"]
    probabilities = policy.describe(agent.actor(observations))["probabilities"].numpy()
    assert (probabilities[mask == 0] == 0.0).all() and (probabilities[mask == 1] > 0.0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), len(SIZES[kind]), rtol=1e-5)

    logits = tf.Variable(np.random.default_rng(1).normal(size=mask.shape).astype(np.float32))
    others = agent.actor(observations)
    actions = policy.mode(others)
    for quantity in (
        lambda p: policy.entropy(p),
        lambda p: policy.log_prob(p, actions),
        lambda p: policy.kl_divergence(p=p, q=others),
        lambda p: policy.kl_divergence(p=others, q=p),
    ):
        with tf.GradientTape() as tape:
            values = quantity(tf.where(mask != 0, logits, tf.float32.min))
        gradient = tape.gradient(values, logits).numpy()
        assert np.isfinite(values).all() and np.isfinite(gradient).all()
        assert (gradient[mask == 0] == 0.0).all() and (gradient[mask == 1] != 0.0).any()
    product = policy.fisher_product(others, tf.where(mask != 0, logits, 0.0)).numpy()
    assert np.isfinite(product).all() and (product[mask == 0] == 0.0).all()


@pytest.mark.parametrize("kind", ACTIONS)
def test_entropy_and_kl_are_those_of_the_legal_actions_alone(kind):
    agent = agent_of(kind)
    policy = agent.actor.action_distribution
    for i, row in enumerate(masks(kind, 20)):
        observations = observations_of(kind, 2, seed=i)
        observations["action_mask"][:] = row
        p, q = policy.describe(agent.actor(observations))["probabilities"].numpy()[:, row == 1]
        parameters = agent.actor(observations)
        entropies = policy.entropy(parameters)
        np.testing.assert_allclose(entropies, [-p @ np.log(p), -q @ np.log(q)], atol=1e-5)
        divergence = policy.kl_divergence(p=parameters[:1], q=parameters[1:])
        np.testing.assert_allclose(divergence, [p @ np.log(p / q)], atol=1e-5)


@pytest.mark.parametrize("engine", [LiteRTEngine, CompiledEngine])
@pytest.mark.parametrize("kind", ACTIONS)
def test_of_100_000_samples_none_is_illegal(kind, engine):
    agent = agent_of(kind)
    act, observations = engine(agent.actor, 1000), observations_of(kind)
    act.load_weights()
    noise = agent.actor.action_distribution.draw_noise(np.random.default_rng(0), (100, 1000))
    for of_step in noise:
        _, actions = act(observations, of_step)
        assert legal(kind, observations["action_mask"], actions).all()


# ---------------------------------------------------------------------------------------- training

AGENTS = {
    "PPO": (keras_pg.PPO, {"num_minibatches": 2, "update_epochs": 2}),
    "PPO, Q and A": (
        keras_pg.PPO,
        {"num_minibatches": 2, "update_epochs": 2, "advantage": "advantage"},
    ),
    "A2C": (keras_pg.A2C, {}),
    "REINFORCE": (keras_pg.REINFORCE, {}),
    "NPG": (keras_pg.NPG, {}),
    "TRPO": (keras_pg.TRPO, {}),
    "MDPO": (keras_pg.MDPO, {"num_minibatches": 2, "update_epochs": 2}),
    "GRPO": (keras_pg.GRPO, {"group_size": 2, "num_minibatches": 2, "update_epochs": 2}),
}


@pytest.mark.parametrize("name", some_slow(AGENTS, "A2C", "PPO, Q and A"))
def test_every_agent_trains_by_legal_actions_only(name):
    kind = "components" if name == "PPO, Q and A" else "discrete"
    algorithm, options = AGENTS[name]
    agent = algorithm(actor=keras_pg.mlp((8,), seed=0), seed=0, **options)
    agent.compile(jit_compile=name == "PPO")
    sizes = {"num_envs": 4, "num_steps": 8, "epochs": 1, "steps_per_epoch": 3, "verbose": 0}
    history = agent.fit(lambda: Turnstile(kind), **sizes).history
    finite = {key: values for key, values in history.items() if key != "explained_variance"}
    assert all(np.isfinite(values).all() for values in finite.values()), history
    for deterministic in (True, False):
        agent.evaluate(lambda: Turnstile(kind), 8, deterministic=deterministic, verbose=0)


@pytest.mark.parametrize("estimator", ["exact", "k3"])
def test_the_kl_to_a_masked_reference_is_finite(estimator):
    reference = agent_of("discrete")
    agent = keras_pg.PPO(
        reference=reference, kl_coef=0.1, kl_estimator=estimator, num_minibatches=1, seed=0
    )
    agent.compile(jit_compile=False)
    sizes = {"num_envs": 2, "num_steps": 8, "epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    history = agent.fit(Turnstile, **sizes).history
    assert 0.0 < history["kl_reference"][0] < 10.0 and np.isfinite(history["loss"]).all()


@pytest.mark.slow
def test_masks_come_from_environments_in_processes_of_their_own():
    agent = keras_pg.PPO(num_minibatches=1, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    sizes = {"num_envs": 2, "num_steps": 16, "epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    history = agent.fit(Turnstile, vectorization="async", **sizes).history
    assert abs(history["approx_kl"][0]) < 1e-6


@pytest.mark.parametrize("kind", ACTIONS)
def test_the_mask_of_collecting_is_that_of_learning(kind):
    agent = keras_pg.PPO(num_minibatches=1, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    sizes = {"num_envs": 4, "num_steps": 32, "epochs": 3, "steps_per_epoch": 1, "verbose": 0}
    history = agent.fit(lambda: Turnstile(kind), **sizes).history
    assert max(np.abs(history["approx_kl"])) < 1e-6 and max(history["clip_fraction"]) == 0.0


def collected(mode, steps):
    """{environment: its valid transitions} under one policy."""
    factories = [Turnstile] * 3
    if mode == "own":
        env = SerialVectorEnv(factories)
    else:
        env = SyncVectorEnv(factories, autoreset_mode=mode)
    agent = agent_of("discrete")
    collector = VectorEnvCollector(
        env,
        LiteRTEngine(agent.actor, 3),
        agent.actor.action_distribution,
        num_steps=steps,
        gamma=0.9,
    )
    collector.reset(0)
    rollout = collector.collect()
    flat = tf.nest.flatten(rollout._replace(valid=rollout.valid))
    return [[field[rollout.valid[:, i], i][:16] for field in flat] for i in range(3)]


def test_all_autoreset_modes_give_the_same_masks_and_transitions():
    expected = collected("own", 16)
    for mode in AutoresetMode:
        for environment, same in zip(collected(mode, 24), expected, strict=True):
            for field, wanted in zip(environment, same, strict=True):
                np.testing.assert_array_equal(field[: len(wanted)], wanted)


def test_a_state_without_a_legal_action_is_an_error_that_names_it():
    agent = keras_pg.PPO(num_minibatches=1, seed=0)
    with pytest.raises(ValueError, match=r"Environment 0 has no legal action at step 2 .*\[0, 0"):
        agent.fit(lambda: Turnstile(dead_end=2), num_envs=2, num_steps=8, verbose=0)
    assert agent.iteration.numpy() == 0


def test_values_by_q_are_means_over_the_legal_actions():
    agent = agent_of("discrete", advantage="advantage")
    observations = observations_of("discrete", 50)
    values = agent.critic.expectation(observations, agent.actor, seed=[0, 0]).numpy()
    actions = np.arange(4)
    q = np.stack([agent.critic(observations, np.full(50, a + 2)).numpy() for a in actions], axis=-1)
    probabilities = agent.described_actions(observations)["probabilities"].numpy()
    assert (probabilities[observations["action_mask"] == 0] == 0).all()
    np.testing.assert_allclose(values, (q * probabilities).sum(axis=-1), rtol=1e-5, atol=1e-6)


def test_the_networks_see_the_observation_without_the_mask():
    agent = agent_of("discrete")
    observations = observations_of("discrete", 20)
    others = observations | {"action_mask": masks("discrete", 20, seed=5)}
    np.testing.assert_array_equal(agent.critic(observations), agent.critic(others))
    np.testing.assert_array_equal(
        agent.actor.features(observations), agent.actor.features(others["observation"])
    )


def test_a_saved_agent_keeps_its_masked_space(tmp_path):
    agent = agent_of("components")
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.actor.observation_space == agent.actor.observation_space
    observations = observations_of("components", 50)
    np.testing.assert_array_equal(loaded.act(observations), agent.act(observations))


# ---------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("kind", ACTIONS)
def test_act_and_predict_are_legal_for_10_000_masks(kind):
    agent, observations = agent_of(kind), observations_of(kind, 10_000)
    mask = observations["action_mask"]
    assert legal(kind, mask, agent.predict(observations, batch_size=1000, verbose=0)).all()
    for deterministic in (True, False):
        actions = agent.act(observations, deterministic=deterministic)
        assert legal(kind, mask, actions).all()
    single = agent.act(rows(observations, 3), deterministic=True)
    np.testing.assert_array_equal(single, agent.act(observations)[3])


BAD = {
    "no dictionary": (np.zeros((2, 3)), "received no dictionary"),
    "no mask": ({"observation": np.zeros((2, 3))}, r"received \['observation'\]"),
    "more masks": (
        {"observation": np.zeros((2, 3)), "action_mask": np.ones((3, 4))},
        "2 observations, but 3 action masks",
    ),
    "other length": (
        {"observation": np.zeros((2, 3)), "action_mask": np.ones((2, 5))},
        r"shape \(batch, 4\)",
    ),
    "nothing legal": (
        {"observation": np.zeros((2, 3)), "action_mask": [[1, 0, 0, 0], [0, 0, 0, 0]]},
        "row 1 leaves no legal action",
    ),
    "a fraction": (
        {"observation": np.zeros((1, 3)), "action_mask": [[0.9, 0, 0, 1]]},
        "row 0 has the value 0.9, which is neither 0 nor 1",
    ),
    "not a number": (
        {"observation": np.zeros((2, 3)), "action_mask": [[1, 0, 0, 0], [0, np.nan, 0, 1]]},
        "row 1 has the value nan",
    ),
    "beyond int8": (
        {"observation": np.zeros((2, 3)), "action_mask": [[1, 0, 0, 1], [1, 0, 0, 256]]},
        "row 1 has the value 256",
    ),
    "beyond int32": (
        {"observation": np.zeros((1, 3)), "action_mask": [[0, 0, 0, 2**32]]},
        "row 0 has the value 4294967296",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_masks_are_refused(name):
    observations, message = BAD[name]
    agent = agent_of("discrete")
    for method in (agent.act, agent.predict):
        with pytest.raises(ValueError, match=message):
            method(observations)


@pytest.mark.parametrize("of_type", [bool, np.float32, np.int64, np.uint8, list])
def test_a_mask_of_zeros_and_ones_is_taken_in_any_type(of_type):
    agent, observations = agent_of("discrete"), observations_of("discrete", 50)
    mask = observations["action_mask"]
    given = mask.tolist() if of_type is list else mask.astype(of_type)
    actions = agent.act({"observation": observations["observation"], "action_mask": given})
    np.testing.assert_array_equal(actions, agent.act(observations))


@pytest.mark.parametrize(
    "mask, action_space, message",
    [
        (MultiBinary(3), Discrete(4), r"expected MultiBinary\(4\)"),
        (Box(0.0, 1.0, (4,)), Discrete(4), r"expected MultiBinary\(4\)"),
        (Box(0, 2**40, (4,), np.int64), Discrete(4), r"an entry, 0 or 1, .*MultiBinary\(4\)"),
        (Box(-1, 1, (4,), np.int16), Discrete(4), r"an entry, 0 or 1, .*MultiBinary\(4\)"),
        (Box(0, 255, (4,), np.uint8), Discrete(4), r"an entry, 0 or 1, .*MultiBinary\(4\)"),
        (MultiBinary(4), MultiDiscrete([2, 3]), "one component after the other"),
        (MultiBinary(2), Box(-1.0, 1.0, (2,)), "cannot be masked"),
        (MultiBinary(2), MultiBinary(2), "cannot be masked"),
    ],
)
def test_a_mask_must_fit_the_actions(mask, action_space, message):
    space = Dict(observation=OBSERVATIONS, action_mask=mask)
    with pytest.raises(ValueError, match=message):
        keras_pg.PPO().build(space, action_space)


# ---------------------------------------------------------------------------------------- serving


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_served_policy_takes_no_illegal_action_for_10_000_masks(kind, tmp_path):
    agent = agent_of(kind)
    signatures = tf.saved_model.load(str(agent.export(tmp_path))).signatures
    observations = observations_of(kind, 10_000)
    inputs = {name: tf.constant(array) for name, array in observations.items()}
    modes = signatures["serving_default"](**inputs)
    np.testing.assert_array_equal(modes["action"], agent.act(observations))
    seeds = tf.constant(np.arange(20_000, dtype=np.int32).reshape(-1, 2))
    samples = signatures["sample"](**inputs, seed=seeds)
    for outputs in (modes, samples):
        assert legal(kind, observations["action_mask"], outputs["action"].numpy()).all()
    assert (modes["probabilities"].numpy()[observations["action_mask"] == 0] == 0.0).all()

    # Without a mask every action is legal, under a name that says so.
    unmasked = signatures["unmasked"](observation=inputs["observation"])
    everything = observations | {"action_mask": np.ones_like(observations["action_mask"])}
    np.testing.assert_array_equal(unmasked["action"], agent.act(everything))

    few = {name: tensor[:4] for name, tensor in inputs.items()}
    for mask in (tf.zeros_like(few["action_mask"]), few["action_mask"][:1]):
        for signature, seed in (("serving_default", {}), ("sample", {"seed": seeds[:4]})):
            with pytest.raises(tf.errors.InvalidArgumentError, match="action mask"):
                signatures[signature](observation=few["observation"], action_mask=mask, **seed)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_a_mask_may_be_a_box_from_0_to_1(dtype, tmp_path):
    space = Dict(observation=OBSERVATIONS, action_mask=Box(0, 1, (4,), dtype))
    agent = perturbed_agent(space, ACTIONS["discrete"])
    observations = observations_of("discrete", 50)
    observations["action_mask"] = observations["action_mask"].astype(dtype)
    signatures = tf.saved_model.load(str(agent.export(tmp_path))).signatures
    served = signatures["serving_default"](**observations)["action"]
    assert legal("discrete", observations["action_mask"], served.numpy()).all()
    np.testing.assert_array_equal(served, agent.act(observations))


@pytest.mark.parametrize("kind", some_slow(ACTIONS, "components"))
@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_litert_and_onnx_answer_where_nothing_is_legal_with_the_first_action(
    format, kind, tmp_path
):
    run = replay.runner(agent_of(kind).export(tmp_path, format=format))
    observations = observations_of(kind, 5)
    answers = run(observations | {"action_mask": np.zeros_like(observations["action_mask"])})
    first = getattr(ACTIONS[kind], "start", 0) + np.zeros(ACTIONS[kind].shape)
    assert (answers["action"] == first).all()
    uniform = np.concatenate([np.full(n, 1 / n) for n in SIZES[kind]])
    np.testing.assert_allclose(answers["probabilities"], np.tile(uniform, (5, 1)), rtol=1e-6)


# ------------------------------------------------------------------------------------ the wrapper


def test_taxi_says_what_is_legal():
    env = ActionMask(gymnasium.make("Taxi-v4"))
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])
    agent = keras_pg.PPO(num_minibatches=1, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    agent.fit(
        lambda: ActionMask(gymnasium.make("Taxi-v4")),
        num_envs=2,
        num_steps=50,
        epochs=1,
        steps_per_epoch=2,
        verbose=0,
    )
    for _ in range(50):
        action = agent.act(observation, deterministic=False)
        assert observation["action_mask"][action] == 1
        observation, *_ = env.step(action)


def test_a_function_says_what_is_legal():
    def parity(env):
        return [env.state[0] >= 0, True]

    env = ActionMask(gymnasium.make("CartPole-v1"), legal_actions=parity)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        expected = [observation["observation"][0] >= 0, 1]
        assert observation["action_mask"].tolist() == expected
        assert env.observation_space.contains(observation)
    assert gymnasium.make(env.spec).legal_actions is parity


def test_masks_that_are_not_there_or_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"no info\['action_mask'\].*pass legal_actions"):
        ActionMask(gymnasium.make("CartPole-v1")).reset()
    env = ActionMask(gymnasium.make("CartPole-v1"), legal_actions=lambda env: [1, 1, 1])
    with pytest.raises(ValueError, match=r"shape \(2,\), received \(3,\)"):
        env.reset()
    with pytest.raises(ValueError, match="cannot be masked"):
        ActionMask(gymnasium.make("Pendulum-v1"))
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    env.action_space = MultiDiscrete([[2, 2], [2, 2]])
    with pytest.raises(ValueError, match=r"(?s)space: MultiDiscrete.*Supported are .*rank 1"):
        ActionMask(env, legal_actions=lambda env: np.ones(8))


@pytest.mark.parametrize("value", [np.nan, 0.5, 2, -1])
def test_what_a_mask_has_beside_0_and_1_is_an_error(value):
    env = ActionMask(gymnasium.make("CartPole-v1"), legal_actions=lambda env: [1, value])
    with pytest.raises(ValueError, match=f"0 or 1 for each choice, received .*{value}"):
        env.reset()


class Countdown(gymnasium.Env):
    """Ends after 3 steps, by itself or cut off; what it says then has no mask."""

    observation_space, action_space = OBSERVATIONS, Discrete(3)

    def __init__(self, terminates):
        self.terminates = terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {"action_mask": np.array([1, 0, 1])}

    def step(self, action):
        self.t += 1
        over = self.t == 3
        info = {} if over else {"action_mask": np.array([True, False, True])}
        terminated, truncated = over and self.terminates, over and not self.terminates
        return np.zeros(3, np.float32), 1.0, terminated, truncated, info


def test_a_terminal_state_needs_no_mask():
    env = ActionMask(Countdown(terminates=True))
    env.reset()
    found = [env.step(0)[0]["action_mask"].tolist() for _ in range(3)]
    assert found == [[1, 0, 1], [1, 0, 1], [0, 0, 0]]
    agent = keras_pg.PPO(num_minibatches=1, update_epochs=1, seed=0)
    agent.compile(jit_compile=False)
    sizes = {"num_envs": 2, "num_steps": 8, "epochs": 1, "steps_per_epoch": 1, "verbose": 0}
    history = agent.fit(lambda: ActionMask(Countdown(terminates=True)), **sizes).history
    assert np.isfinite(history["loss"]).all()

    # Values are still asked for where an episode is only cut off.
    env = ActionMask(Countdown(terminates=False))
    env.reset()
    with pytest.raises(ValueError, match=r"no info\['action_mask'\]"):
        for _ in range(3):
            env.step(0)
