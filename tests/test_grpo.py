"""GRPO, and the KL to a reference policy."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from environments import Bandit, Clockwork
from keras_pg import losses
from keras_pg.advantages import GroupRelative, ReturnMinusBaseline, RewardToGo
from keras_pg.agents.grpo import step_weights
from keras_pg.agents.ppo import Batch
from keras_pg.agents.reference import kl_to_reference
from keras_pg.distributions import Categorical
from keras_pg.returns import group_advantages
from stepping import CONTINUOUS, DISCRETE, OBSERVATIONS, built, make_rollout, step, weights


def episodes(agent, lengths, seed=0):
    """A rollout of one episode in each environment, of these lengths."""
    lengths = np.array(lengths)
    rollout = make_rollout(agent, T=max(lengths), N=len(lengths), seed=seed)
    times = np.arange(max(lengths))[:, None] * np.ones_like(lengths)
    return rollout._replace(
        valid=times < lengths,
        terminated=times == lengths - 1,
        truncated=np.zeros_like(rollout.truncated),
        timesteps=times.astype(np.int32),
    )


# ------------------------------------------------------------------------------------ advantages


@pytest.mark.parametrize(
    "scale, expected",
    [
        ("group", [-1 / (np.sqrt(2) + 1e-4), 1 / (np.sqrt(2) + 1e-4), 0.0, 0.0]),
        # Returns 1, 3, 5, 5: deviations from their mean 3.5 of 2.5, 0.5, 1.5 and 1.5.
        ("batch", [-1 / (np.sqrt(11 / 3) + 1e-4), 1 / (np.sqrt(11 / 3) + 1e-4), 0.0, 0.0]),
        (None, [-1.0, 1.0, 0.0, 0.0]),
    ],
)
def test_advantages_of_two_groups_by_hand(scale, expected):
    found = group_advantages(tf.constant([1.0, 3.0, 5.0, 5.0]), 2, scale)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", None])
def test_equal_returns_have_exactly_no_advantage(scale):
    returns = tf.constant([0.1] * 3 + [1 / 3] * 3 + [1e7] * 3)
    np.testing.assert_array_equal(group_advantages(returns, 3, scale), np.zeros(9))


@pytest.mark.parametrize(
    "normalization, expected", [("sequence", 1.5), ("token", 1.75), ("constant", 0.875)]
)
def test_the_three_normalizations_of_the_loss_by_hand(normalization, expected):
    """Losses [1] and [2, 2, 2] of two episodes that may have four steps."""
    valid = np.array([[True, True], [False, True], [False, True], [False, False]])
    rows = np.array([[1.0, 2.0], [9.0, 2.0], [9.0, 2.0], [9.0, 9.0]], np.float32)
    weights = step_weights(valid, normalization)
    assert float(tf.reduce_sum(weights * rows)) == pytest.approx(expected)


# ------------------------------------------------------------------------------------- the step


def test_the_step_is_that_of_the_objective_episode_by_episode():
    agent = built(keras_pg.GRPO, group_size=2, gamma=0.9, entropy_coef=0.01, learning_rate=1.0)
    rollout = episodes(agent, [3, 5, 1, 4])
    returns = [
        sum(0.9**t * rollout.rewards[t, n] for t in range(8) if t < 5 and rollout.valid[t, n])
        for n in range(4)
    ]
    variables, policy = agent.actor.trainable_variables, agent.actor.action_distribution
    with tf.GradientTape() as tape:
        loss = 0.0
        for n in range(4):
            group = returns[n // 2 * 2 : n // 2 * 2 + 2]
            advantage = (returns[n] - np.mean(group)) / (np.std(group, ddof=1) + 1e-4)
            rows = rollout.valid[:, n]
            parameters = agent.actor(rollout.observations[rows, n])
            log_probs = policy.log_prob(parameters, rollout.actions[rows, n])
            ratio = tf.exp(log_probs - tf.stop_gradient(log_probs))
            objective = ratio * advantage + 0.01 * policy.entropy(parameters)
            loss -= tf.reduce_mean(objective) / 4
    expected = [v - g for v, g in zip(variables, tape.gradient(loss, variables))]
    logs = step(agent, rollout, eagerly=True)
    np.testing.assert_allclose(logs["loss"], float(loss), rtol=1e-5)
    for found, wanted in zip(agent.actor.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_any_estimator_without_a_critic_may_take_the_groups_place():
    """Also in a sum with it, and weighted by γ^t."""
    settings = {"group_size": 2, "gamma": 0.9, "discount_weighting": True, "learning_rate": 1.0}
    estimator = 0.5 * GroupRelative(scale=None) + 0.5 * RewardToGo()
    agent = built(keras_pg.GRPO, advantage=estimator, **settings)
    rollout = episodes(agent, [3, 5, 1, 4])
    variables = agent.actor.trainable_variables
    with tf.GradientTape() as tape:
        loss = 0.0
        lengths = [3, 5, 1, 4]
        discounts = 0.9 ** np.arange(5)
        returns = [
            [discounts[: end - t] @ rollout.rewards[t:end, n] for t in range(end)]
            for n, end in enumerate(lengths)
        ]
        for n, length in enumerate(lengths):
            group = [returns[m][0] for m in (n // 2 * 2, n // 2 * 2 + 1)]
            log_probs = agent.actor.action_distribution.log_prob(
                agent.actor(rollout.observations[:length, n]), rollout.actions[:length, n]
            )
            psi = [
                0.5 * (returns[n][0] - np.mean(group)) + 0.5 * 0.9**t * returns[n][t]
                for t in range(length)
            ]
            loss -= tf.reduce_mean(log_probs * np.array(psi, np.float32)) / 4
    expected = [v - g for v, g in zip(variables, tape.gradient(loss, variables))]
    step(agent, rollout, eagerly=True)
    for found, wanted in zip(agent.actor.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_other_estimators_are_fitted_with_and_saved(tmp_path):
    """One with statistics in a sum with the group's, on Gymnasium's and native environments."""
    for env in (Bandit, keras_pg.envs.ContextualBandit()):
        estimator = GroupRelative() + ReturnMinusBaseline("mean")
        agent = keras_pg.GRPO(group_size=2, advantage=estimator, seed=0)
        agent.compile(jit_compile=False)
        agent.fit(env, num_envs=4, num_steps=1, epochs=1, steps_per_epoch=2, verbose=0)
        agent.save(tmp_path / "agent.keras")
        loaded = keras.models.load_model(tmp_path / "agent.keras")
        assert float(loaded.advantage.layers[0].count) == 8
        for one in (agent, loaded):
            one.fit(env, num_envs=4, num_steps=1, epochs=1, steps_per_epoch=2, verbose=0)
        for one, other in zip(agent.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group_size=1"):
        group_advantages(tf.constant([1.0, 2.0]), 1)


def test_the_loss_is_zero_before_the_first_step_and_its_gradient_is_not():
    agent = built(keras_pg.GRPO, group_size=2, learning_rate=1.0)
    before = weights(agent)
    logs = step(agent, episodes(agent, [3, 5, 1, 4]), eagerly=True)
    assert abs(logs["loss"]) < 1e-6
    assert max(np.abs(a - b).max() for a, b in zip(before, weights(agent))) > 1e-3


def test_groups_of_equal_returns_teach_nothing_and_are_counted():
    agent = built(keras_pg.GRPO, group_size=2)
    rollout = episodes(agent, [3, 3, 3, 3])
    rollout = rollout._replace(rewards=np.full_like(rollout.rewards, 0.1))
    before = weights(agent)
    assert step(agent, rollout, eagerly=True)["frac_zero_std"] == 1
    agent.update_means.reset_state()
    for one, other in zip(before, weights(agent), strict=True):
        np.testing.assert_array_equal(one, other)
    rewards = rollout.rewards.copy()
    rewards[0, 1] = 5.0
    rollout = rollout._replace(rewards=rewards)
    assert step(agent, rollout, eagerly=True)["frac_zero_std"] == 0.5
    # A penalty makes the returns differ, but not what the environment gave.
    settings = {"reference": built(keras_pg.PPO), "kl_coef": 1.0, "kl_in": "reward"}
    agent = built(keras_pg.GRPO, group_size=2, **settings, kl_estimator="k1")
    assert step(agent, rollout, eagerly=True)["frac_zero_std"] == 0.5


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_minibatches_weigh_each_step_as_the_whole_does(normalization):
    """With steps so small that the policy hardly moves, parts add up to the whole."""
    agents = [
        built(
            keras_pg.GRPO,
            group_size=2,
            normalization=normalization,
            num_minibatches=m,
            learning_rate=m * 1e-3,
        )
        for m in (1, 4)
    ]
    agents[1].optimizer.learning_rate = 1e-3 / 4
    agents[0].optimizer.learning_rate = 1e-3
    rollout = episodes(agents[0], [4, 8, 1, 3])
    start = weights(agents[0])
    for agent in agents:
        step(agent, rollout, eagerly=True)
    for origin, one, other in zip(start, *map(weights, agents), strict=True):
        np.testing.assert_allclose(other - origin, one - origin, atol=2e-6)


@pytest.mark.parametrize("num_minibatches", [1, 4])
@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_what_is_said_of_the_policy_is_a_mean_over_its_steps(normalization, num_minibatches):
    """However the loss is normalized, and `target_kl` stops at the same divergence."""
    settings = {"group_size": 2, "normalization": normalization, "num_minibatches": num_minibatches}
    agent = built(keras_pg.GRPO, learning_rate=1e-9, **settings)
    rollout = episodes(agent, [3, 20, 2, 4])
    policy, valid = agent.actor.action_distribution, rollout.valid
    logs = step(agent, rollout, eagerly=True)
    entropy = policy.entropy(agent.actor(rollout.observations[valid])).numpy()
    # Minibatches have unequal numbers of valid steps: a mean of their means is near, not equal.
    rtol = 1e-4 if num_minibatches == 1 else 0.05
    np.testing.assert_allclose(logs["entropy"], entropy.mean(), rtol=rtol)

    agent = built(keras_pg.GRPO, learning_rate=0.03, target_kl=0.01, update_epochs=1000, **settings)
    rows = rollout.observations[valid], rollout.actions[valid]
    old = policy.log_prob(agent.actor(rows[0]), rows[1])
    logs = step(agent, rollout)
    log_ratio = policy.log_prob(agent.actor(rows[0]), rows[1]) - old
    assert 1 < logs["n_updates"] < 1000 * num_minibatches
    # The divergence of a minibatch may differ from that of the whole.
    assert 0.0 < np.mean(losses.kl_k3(log_ratio)) < (0.0153 if num_minibatches == 1 else 0.045)


def test_the_clip_range_may_be_wider_above():
    ratio, advantages = tf.constant([1.25, 1.35, 0.75]), tf.constant([1.0, 1.0, -1.0])
    expected = [-1.25, -1.3, 0.8]
    found = losses.clipped_surrogate(ratio, advantages, 0.2, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    agent = built(keras_pg.GRPO, clip_ratio=0.2, clip_ratio_high=0.3)
    batch = Batch(*[None] * 7, advantages)
    np.testing.assert_allclose(agent.policy_loss(batch, None, ratio), expected, rtol=1e-6)


# --------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_episodes_of_a_group_begin_alike(vectorization):
    agent = keras_pg.GRPO(group_size=3, seed=4)
    seen = []
    agent.log = lambda rollout, values: seen.append(rollout) or {"env_steps": tf.constant(0)}
    agent.compile(run_eagerly=True)
    agent.fit(Bandit, num_envs=6, num_steps=1, epochs=1, steps_per_epoch=2, verbose=0,
              vectorization=vectorization)  # fmt: skip
    for rollout in seen:
        first = rollout.observations[0].numpy()
        for group in (first[:3], first[3:]):
            np.testing.assert_array_equal(group, np.broadcast_to(group[0], group.shape))
        assert np.abs(first[0] - first[3]).max() > 1e-3
    assert np.abs(seen[0].observations - seen[1].observations).max() > 1e-3


@pytest.mark.parametrize(
    "env, arguments, message",
    [
        (Bandit, {"num_envs": 6}, "num_envs=6 is no multiple of group_size=4"),
        (lambda: gymnasium.make_vec("CartPole-v1", 8), {}, "seeded one by one"),
    ],
)
def test_environments_that_cannot_form_groups_are_refused(env, arguments, message):
    if not arguments:
        env = env()
    with pytest.raises(ValueError, match=message):
        keras_pg.GRPO(group_size=4).fit(env, num_steps=1, epochs=1, verbose=0, **arguments)


# ------------------------------------------------------------------------------------ reference


def expected_gradient(estimator, logits, reference):
    """The gradient of an estimate in the loss, the mean over actions taken exactly."""
    policy, variable = Categorical(DISCRETE), tf.Variable(logits)
    actions, repeated = np.arange(3), lambda x: tf.repeat(x[None], 3, axis=0)
    probabilities = tf.nn.softmax(logits)
    with tf.GradientTape() as tape:
        parameters = repeated(tf.convert_to_tensor(variable))
        log_probs = policy.log_prob(parameters, actions)
        rows = kl_to_reference(
            policy, estimator, parameters, log_probs, repeated(reference), actions
        )
        loss = tf.reduce_sum(probabilities * rows)
    return tape.gradient(loss, variable).numpy()


def kl_gradient(logits, reference, reverse):
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        p, q = tf.nn.log_softmax(variable), tf.nn.log_softmax(reference)
        p, q = (p, q) if reverse else (q, p)
        kl = tf.reduce_sum(tf.exp(p) * (p - q))
    return tape.gradient(kl, variable).numpy()


@pytest.mark.parametrize(
    "estimator, reverse", [("exact", True), ("k2", True), ("k3", False), ("k1", None)]
)
def test_each_estimate_in_the_loss_has_the_gradient_it_claims(estimator, reverse):
    logits, reference = (tf.constant(x, tf.float64) for x in ([0.3, -0.5, 1.0], [1.0, 0.2, -0.4]))
    expected = np.zeros(3) if reverse is None else kl_gradient(logits, reference, reverse)
    found = expected_gradient(estimator, logits, reference)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if reverse is not None:
        other = kl_gradient(logits, reference, not reverse)
        assert np.abs(other - expected).max() > 1e-2


@pytest.mark.parametrize("estimator", ["exact", "k2", "k3"])
def test_every_estimate_is_zero_and_flat_at_the_reference(estimator):
    logits = tf.constant([0.3, -0.5, 1.0], tf.float64)
    np.testing.assert_allclose(expected_gradient(estimator, logits, logits), 0.0, atol=1e-12)


def test_k3_times_the_ratio_has_the_gradient_of_the_reverse_kl():
    """Off the policy that acted too, where k3 alone has neither KL's."""
    logits, reference, acted = (
        tf.constant(x, tf.float64) for x in ([0.3, -0.5, 1.0], [1.0, 0.2, -0.4], [0.0, 0.9, 0.2])
    )
    variable, old = tf.Variable(logits), tf.nn.log_softmax(acted)
    with tf.GradientTape(persistent=True) as tape:
        log_probs = tf.nn.log_softmax(variable)
        k3 = losses.kl_k3(tf.nn.log_softmax(reference) - log_probs)
        weighted = tf.reduce_sum(tf.exp(old) * tf.exp(log_probs - old) * k3)
        plain = tf.reduce_sum(tf.exp(old) * k3)
    expected = kl_gradient(logits, reference, True)
    np.testing.assert_allclose(tape.gradient(weighted, variable), expected, atol=1e-12)
    for kind in (True, False):
        other = kl_gradient(logits, reference, kind)
        assert np.abs(tape.gradient(plain, variable) - other).max() > 1e-2


def test_k1_in_the_reward_gives_the_gradient_of_the_reverse_kl():
    """E[-k1 ∇log π], the mean over actions taken exactly, is -∇KL(π ‖ π_ref)."""
    logits, reference = (tf.constant(x, tf.float64) for x in ([0.3, -0.5, 1.0], [1.0, 0.2, -0.4]))
    log_ratio = tf.nn.log_softmax(reference) - tf.nn.log_softmax(logits)
    probabilities = tf.nn.softmax(logits).numpy()
    scores = np.eye(3) - probabilities
    found = (probabilities * -losses.kl_k1(log_ratio).numpy()) @ scores
    np.testing.assert_allclose(found, -kl_gradient(logits, reference, True), atol=1e-12)
    # k3 lacks the derivative of the estimate itself, and near the reference hardly pulls at all.
    found = (probabilities * -losses.kl_k3(log_ratio).numpy()) @ scores
    reverse, forward = (kl_gradient(logits, reference, which) for which in (True, False))
    np.testing.assert_allclose(found, forward - reverse, atol=1e-12)


@pytest.mark.parametrize("algorithm, how", [
    (keras_pg.GRPO, ("exact", "loss")), (keras_pg.GRPO, ("k2", "loss")),
    (keras_pg.GRPO, ("k3", "loss")), (keras_pg.GRPO, ("k1", "reward")),
    (keras_pg.PPO, ("k1", "reward")), (keras_pg.MDPO, ("k3", "loss")),
])  # fmt: skip
def test_a_policy_stays_near_its_reference(algorithm, how):
    """With rewards of zero, nothing but the reference moves it."""
    reference = built(keras_pg.PPO)
    for variable in reference.actor.trainable_variables:
        variable.assign_add(0.3 * np.random.default_rng(5).normal(size=variable.shape))
    settings = {"advantage": "reward_to_go", "normalize_advantages": False}
    if algorithm is keras_pg.GRPO:
        settings = {"group_size": 32, "advantage": GroupRelative(scale=None)}
    agent = built(
        algorithm,
        reference=reference,
        kl_coef=1.0,
        kl_estimator=how[0],
        kl_in=how[1],
        update_epochs=1,
        num_minibatches=1,
        learning_rate=1.0,
        **settings,
    )
    kept = agent.reference.get_weights()
    train_step = tf.function(agent.train_step, autograph=False)
    history = []
    for k in range(40):
        rollout = episodes(agent, [1] * 64, seed=k)
        rollout = rollout._replace(rewards=np.zeros_like(rollout.rewards))
        train_step(tf.nest.map_structure(tf.constant, rollout))
        history.append(agent.update_means.result()["kl_reference"])
        agent.update_means.reset_state()
    assert history[-1] < 0.5 * history[0]
    for one, other in zip(kept, agent.reference.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_reference_is_a_copy_that_is_saved_and_can_be_given_by_path(tmp_path):
    first = built(keras_pg.PPO)
    first.save(tmp_path / "first.keras")
    agents = [
        built(keras_pg.GRPO, reference=reference, kl_coef=0.1, group_size=2)
        for reference in (
            first,
            first.actor,
            tmp_path / "first.keras",
            str(tmp_path / "first.keras"),
        )
    ]
    before = first.actor.get_weights()
    first.actor.trainable_variables[0].assign_add(tf.ones_like(first.actor.trainable_variables[0]))
    agents[0].save(tmp_path / "agent.keras")
    agents.append(keras.models.load_model(tmp_path / "agent.keras"))
    for agent in agents:
        for one, other in zip(before, agent.reference.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        optimized = {id(v) for v in agent.optimized_variables()}
        assert not optimized & {id(v) for v in agent.reference.variables}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_eager_graph_and_xla_agree(jit_compile):
    reference = built(keras_pg.PPO)
    agents = [
        built(
            keras_pg.GRPO,
            reference=reference,
            kl_coef=0.1,
            group_size=2,
            update_epochs=2,
            num_minibatches=2,
        )
        for _ in range(2)
    ]
    rollout = tf.nest.map_structure(tf.constant, episodes(agents[0], [4, 8, 1, 3]))
    agents[0].train_step(rollout)
    tf.function(agents[1].train_step, autograph=False, jit_compile=jit_compile)(rollout)
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_a_saved_agent_makes_the_same_next_update(tmp_path):
    agent = built(
        keras_pg.GRPO,
        group_size=2,
        advantage=GroupRelative("batch"),
        normalization="token",
        clip_ratio_high=0.28,
    )
    rollout = episodes(agent, [4, 8, 1, 3])
    step(agent, rollout, eagerly=True)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.advantage.scale == "batch" and loaded.normalization == "token"
    step(agent, rollout, eagerly=True), step(loaded, rollout, eagerly=True)
    for one, other in zip(agent.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_episodes_longer_than_a_rollout_are_cut():
    agent = keras_pg.GRPO(group_size=2, seed=0)
    agent.compile(jit_compile=False)
    history = agent.fit(
        lambda: Clockwork((50,)), num_envs=4, num_steps=10, epochs=1, steps_per_epoch=1, verbose=0
    ).history
    assert history["episode_length"] == [10.0]


@pytest.mark.parametrize(
    "algorithm, arguments, error, message",
    [
        (keras_pg.GRPO, {"group_size": 1}, ValueError, "group_size .*1"),
        (keras_pg.GRPO, {"normalization": "mean"}, ValueError, "normalization .*'mean'"),
        (keras_pg.GRPO, {"clip_ratio_high": 0.0}, ValueError, "clip_ratio_high .*0"),
        (keras_pg.GRPO, {"clip_ratio": None, "clip_ratio_high": 0.3}, ValueError, "clips nothing"),
        (keras_pg.GRPO, {"advantage": "gae"}, ValueError, "'gae' needs a critic, and GRPO"),
        (keras_pg.GRPO, {"gae_lambda": 0.9}, TypeError, "no argument 'gae_lambda'"),
        (keras_pg.PPO, {"advantage": "group_relative"}, ValueError, "which PPO does not play"),
        (GroupRelative, {"scale": "std"}, ValueError, "scale .*'std'"),
        (keras_pg.PPO, {"kl_coef": 0.1}, ValueError, "one needs the other"),
        (keras_pg.PPO, {"kl_estimator": "k4"}, ValueError, "'k4'"),
        (keras_pg.PPO, {"kl_in": "both"}, ValueError, "'both'"),
        (keras_pg.PPO, {"reference": keras_pg.PPO()}, ValueError, "fitted or built"),
        (keras_pg.PPO, {"reference": 3}, ValueError, "received 3"),
    ],
)
def test_bad_arguments_are_refused(algorithm, arguments, error, message):
    with pytest.raises(error, match=message):
        algorithm(**arguments)


def test_k1_in_the_loss_is_refused():
    with pytest.raises(ValueError, match="gradient of zero"):
        keras_pg.PPO(reference=built(keras_pg.GRPO), kl_coef=0.1, kl_estimator="k1")


def test_a_reference_that_squashes_is_none_for_an_agent_that_clips():
    reference = built(keras_pg.PPO, CONTINUOUS, squash_actions=True)
    agent = keras_pg.PPO(reference=reference, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"SquashedGaussian.*squash_actions must be the same"):
        agent.build(OBSERVATIONS, CONTINUOUS)


def test_a_reference_for_other_spaces_is_refused():
    agent = keras_pg.PPO(reference=built(keras_pg.GRPO), kl_coef=0.1)
    with pytest.raises(ValueError, match="Discrete"):
        agent.build(OBSERVATIONS, gymnasium.spaces.Discrete(5))
