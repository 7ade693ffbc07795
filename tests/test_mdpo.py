"""The KL penalties: PPO's, fixed and adaptive, and MDPO's."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg import losses
from keras_pg.agents.ppo import Batch
from stepping import ACTION_SPACES, built, make_rollout, step, weights

every_space = pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)


def two_armed(algorithm, logits, **settings):
    """An agent with one state and two actions, and a batch on which E[r Â] is exact.

    Actions come as often as the policy has them in the mean, so the mean over rows is E over π_old.
    """
    agent = algorithm(
        keras.Sequential([keras.layers.Identity()]),
        update_epochs=1,
        value_coef=0.0,
        seed=0,
        **settings,
    )
    agent.build(gymnasium.spaces.Discrete(1), gymnasium.spaces.Discrete(2))
    agent.compile(keras.optimizers.SGD(0.2))
    agent.actor.head.kernel.assign([logits]), agent.actor.head.bias.assign([0.0, 0.0])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    counts = np.round(1000 * probabilities).astype(int)
    np.testing.assert_allclose(counts / 1000, probabilities, atol=1e-9)
    actions, advantages = np.repeat([0, 1], counts), np.repeat([1.0, -0.5], counts)
    observations = np.zeros(1000, np.int64)
    parameters = agent.actor(observations)
    batch = Batch(
        *(observations, actions, parameters),
        agent.actor.action_distribution.log_prob(parameters, actions),
        parameters,
        tf.zeros(1000),
        tf.zeros(1000),
        tf.constant(advantages, tf.float32),
    )
    return agent, batch, probabilities


def ascended(agent, batch, steps):
    """π after so many gradient steps on one batch."""
    everything = losses.mean_weights(tf.ones(1000, tf.bool))

    @tf.function(autograph=False)
    def ascend():
        return agent._ascend(steps, lambda i: (*batch, everything, everything))

    ascend()
    return tf.nn.softmax(agent.actor(np.zeros(1, np.int64)))[0].numpy()


@pytest.mark.parametrize("step_size", [0.3, 2.0])
def test_many_steps_of_mdpo_reach_the_mirror_descent_update(step_size):
    """π_old exp(η Â) / Z, the closed form of mirror descent on the simplex."""
    agent, batch, old = two_armed(keras_pg.MDPO, np.log([0.3, 0.7]), step_size=step_size)
    expected = old * np.exp(step_size * np.array([1.0, -0.5]))
    found = ascended(agent, batch, 500)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-3)


@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_many_steps_of_penalized_ppo_reach_the_fixed_point_of_the_other_kl(penalty):
    """E[r Â] - β KL(π_old ‖ π) is largest at π = β π_old / (c - Â), with c such that Σπ = 1."""
    agent, batch, old = two_armed(
        keras_pg.PPO, np.log([0.3, 0.7]), clip_ratio=None, kl_penalty=penalty, num_minibatches=1
    )
    advantages = np.array([1.0, -0.5])
    low, high = 1.0 + 1e-9, 1.0 + 10 * penalty
    for _ in range(200):  # bisection: Σπ falls as c grows
        c = (low + high) / 2
        total = (penalty * old / (c - advantages)).sum()
        low, high = (c, high) if total > 1 else (low, c)
    found = ascended(agent, batch, 500)
    np.testing.assert_allclose(found, penalty * old / (c - advantages), atol=1e-3)


@every_space
def test_the_first_gradient_step_knows_no_penalty(space):
    """The gradient of either KL is zero at π = π_old."""
    rollout = make_rollout(built(keras_pg.PPO, space))
    once = {"num_minibatches": 1, "update_epochs": 1}
    agents = [
        built(keras_pg.PPO, space, clip_ratio=None, **once),
        built(keras_pg.PPO, space, clip_ratio=None, kl_penalty=100.0, **once),
        built(keras_pg.MDPO, space, step_size=1e-2, **once),
        built(keras_pg.MDPO, space, step_size=10.0, clip_ratio=0.2, **once),
    ]
    for agent in agents:
        step(agent, rollout, eagerly=True)
    for other in agents[1:]:
        for one, two in zip(weights(agents[0]), weights(other), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)


@every_space
@pytest.mark.parametrize("algorithm, settings", [
    (keras_pg.PPO, {"kl_penalty": 0.0}), (keras_pg.PPO, {"kl_penalty": 20.0}),
    (keras_pg.PPO, {"kl_penalty": 20.0, "clip_ratio": 0.05}),
    (keras_pg.MDPO, {"step_size": 10.0}), (keras_pg.MDPO, {"step_size": 0.05}),
])  # fmt: skip
def test_the_loss_has_the_kl_in_the_order_and_with_the_factor_it_claims(algorithm, settings, space):
    agent, old = (
        built(algorithm, space, **{"num_minibatches": 1, "clip_ratio": None, **settings}),
        built(keras_pg.PPO, space),
    )
    for variable in old.actor.trainable_variables:
        variable.assign(1.1 * variable)
    rollout = make_rollout(old)
    observations = rollout.observations.reshape(-1, 3)
    actions = rollout.actions.reshape(-1, *rollout.actions.shape[2:])
    policy = agent.actor.action_distribution
    parameters, new = old.actor(observations), agent.actor(observations)
    old_log_probs = policy.log_prob(parameters, actions)
    advantages = tf.constant(rollout.rewards.reshape(-1))
    rows = agent.surrogate_loss(
        Batch(
            *(observations, actions, parameters, old_log_probs, parameters),
            *(tf.zeros(32), tf.zeros(32), advantages),
        )
    )
    ratio = tf.exp(policy.log_prob(new, actions) - old_log_probs)
    p, q = policy.distribution(parameters), policy.distribution(new)
    penalty = (
        settings["kl_penalty"] * p.kl_divergence(q)
        if algorithm is keras_pg.PPO
        else q.kl_divergence(p) / settings["step_size"]
    )
    surrogate = ratio * advantages
    if "clip_ratio" in settings:
        clipped = tf.clip_by_value(ratio, 0.95, 1.05) * advantages
        assert np.any(clipped < surrogate)
        surrogate = tf.minimum(surrogate, clipped)
    np.testing.assert_allclose(rows["policy_loss"], penalty - surrogate, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "learning_rate, factor, jit_compile", [(1e-6, 0.5, False), (5.0, 2.0, True)]
)
def test_the_penalty_is_halved_below_its_target_and_doubled_above(
    learning_rate, factor, jit_compile
):
    agent = built(
        keras_pg.PPO, learning_rate=learning_rate, clip_ratio=None, kl_penalty=0.5,
        kl_penalty_target=0.01, update_epochs=2, num_minibatches=1,
    )  # fmt: skip
    train_step = tf.function(agent.train_step, autograph=False, jit_compile=jit_compile)
    for k in (1, 2):
        train_step(tf.nest.map_structure(tf.constant, make_rollout(agent)))
        if factor == 0.5 or k == 1:
            assert float(agent.kl_penalty) == 0.5 * factor**k


@pytest.mark.slow
def test_an_adapted_penalty_keeps_the_kl_near_its_target():
    agent = keras_pg.PPO(
        clip_ratio=None, kl_penalty=1.0, kl_penalty_target=0.02, num_minibatches=4, seed=0
    )
    agent.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    history = agent.fit(
        "CartPole-v1", epochs=20, steps_per_epoch=1, num_steps=64, num_envs=4, verbose=0
    ).history
    # Its mean over the gradient steps of an iteration is less than at the end of it.
    assert 0.002 < np.median(history["approx_kl"][5:]) < 0.04
    assert float(agent.kl_penalty) != 1.0


def test_without_clipping_no_ratio_is_counted_as_clipped():
    agent = built(
        keras_pg.PPO, num_minibatches=1, learning_rate=5.0, clip_ratio=None, update_epochs=3
    )
    assert step(agent, make_rollout(agent), eagerly=True)["clip_fraction"] == 0


@pytest.mark.parametrize("algorithm", [keras_pg.PPO, keras_pg.MDPO])
def test_a_saved_agent_makes_the_same_next_update(algorithm, tmp_path):
    settings = (
        {"clip_ratio": None, "kl_penalty": 0.5, "kl_penalty_target": 0.01}
        if algorithm is keras_pg.PPO
        else {"step_size": keras.optimizers.schedules.PolynomialDecay(1.0, 100, 0.0)}
    )
    agent = built(algorithm, **{"num_minibatches": 1, **settings})
    rollout = make_rollout(agent)
    step(agent, rollout, eagerly=True)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.clip_ratio is None
    step(agent, rollout, eagerly=True), step(loaded, rollout, eagerly=True)
    for one, other in zip(agent.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


@pytest.mark.parametrize(
    "algorithm, arguments, message",
    [
        (keras_pg.PPO, {"kl_penalty": -1.0}, "kl_penalty .*-1"),
        (keras_pg.PPO, {"kl_penalty_target": 0.01}, "give both"),
        (keras_pg.PPO, {"kl_penalty": 1.0, "kl_penalty_target": 0.0}, "kl_penalty_target .*0"),
        (keras_pg.MDPO, {"step_size": 0.0}, "step_size .*0"),
        (keras_pg.MDPO, {"kl_penalty": 1.0}, "no kl_penalty"),
    ],
)
def test_bad_arguments_are_refused(algorithm, arguments, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**arguments)


def test_a_clip_ratio_that_was_none_stays_none():
    agent = keras_pg.PPO(clip_ratio=None)
    with pytest.raises(ValueError, match="clip_ratio was None"):
        agent.clip_ratio = 0.2
