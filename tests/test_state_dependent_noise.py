"""Generalized state-dependent exploration: noise is a function of the state, held for steps."""

import gymnasium
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete

import keras_pg
from keras_pg import Actor, envs, trust_region
from keras_pg.rollouts import collector_for, make_vector_env
from stepping import make_rollout, step

OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (3,)), Box(-np.inf, np.inf, (2,))


def make_actor(held_steps=4, seed=0, observations=OBSERVATIONS, actions=ACTIONS, **keywords):
    """Deviations and head have been moved, as by learning."""
    encoder = keras_pg.mlp((5,), seed=seed)
    actor = Actor(
        observations,
        actions,
        encoder,
        state_dependent_noise=held_steps,
        normalize_observations=False,
        seed=seed,
        **keywords,
    )
    rng = np.random.default_rng(seed)
    actor.log_std.assign(rng.normal(-0.5, 0.3, actor.log_std.shape))
    actor.head.set_weights([rng.normal(0, 0.3, w.shape) for w in actor.head.get_weights()])
    return actor


def states(count=7):
    return np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)


def in_float64(actor, observations):
    """(Means [B, A], features [B, F], deviations [F, A]) of the actor."""
    features = actor.encoder(observations).numpy().astype(np.float64)
    kernel, bias = (w.astype(np.float64) for w in actor.head.get_weights())
    return features @ kernel + bias, features, np.exp(actor.log_std.numpy().astype(np.float64))


# ------------------------------------------------------------------------------------- the policy


def test_one_draw_of_noise_makes_the_action_a_function_of_the_state():
    """a = μ(s) + φ(s) (σ ∘ E), one E for all states."""
    actor = make_actor()
    noise = np.random.default_rng(2).normal(size=(5, 2))
    mean, features, deviations = in_float64(actor, states())
    sampled = actor.action_distribution.sample(
        actor(states()), np.tile(noise.reshape(1, 10), (7, 1)).astype(np.float32)
    )
    np.testing.assert_allclose(sampled, mean + features @ (deviations * noise), atol=1e-5)


def test_what_is_scored_is_the_gaussian_of_all_draws():
    """N(μ, φ² σ²), and so are the samples."""
    actor = make_actor()
    mean, features, deviations = in_float64(actor, states())
    variance = features**2 @ deviations**2
    policy = actor.distribution(states())
    np.testing.assert_allclose(policy.mean(), mean, atol=1e-5)
    np.testing.assert_allclose(policy.variance(), variance, rtol=1e-4, atol=2e-6)
    draws = 40_000
    parameters = tf.repeat(actor(states(1)), draws, axis=0)
    noise = actor.action_distribution.draw_noise(np.random.default_rng(0), (draws,))
    sampled = actor.action_distribution.sample(parameters, noise).numpy().astype(np.float64)
    covariance = np.cov(sampled.T)
    expected = np.diag(variance[0])
    error = 3 * np.sqrt(2 * np.outer(variance[0], variance[0]) / draws)
    assert np.all(np.abs(covariance - expected) < error)


def test_features_learn_from_the_mean_alone_and_deviations_from_the_noise():
    actor, observations = make_actor(), states()
    actions = np.random.default_rng(3).normal(size=(7, 2)).astype(np.float32)
    mean, features, deviations = in_float64(actor, observations)
    variance = features**2 @ deviations**2 + 1e-6
    with tf.GradientTape() as tape:
        score = tf.reduce_sum(actor.action_distribution.log_prob(actor(observations), actions))
    kernel = actor.encoder.layers[0].kernel
    by_encoder, by_log_std = tape.gradient(score, [kernel.value, actor.log_std.value])
    # d/dv of log N(a; μ, v), times dv/d log σ = 2 φ² σ².
    by_variance = ((actions - mean) ** 2 / variance - 1) / (2 * variance)
    expected = 2 * deviations**2 * (features.T**2 @ by_variance)
    np.testing.assert_allclose(by_log_std, expected, rtol=1e-4, atol=1e-5)
    fixed = tf.constant(np.sqrt(variance), tf.float32)
    with tf.GradientTape() as tape:
        means = actor.head(actor.encoder(observations))
        score = -0.5 * tf.reduce_sum(tf.square((actions - means) / fixed))
    wanted = tape.gradient(score, kernel.value)
    np.testing.assert_allclose(by_encoder, wanted, rtol=1e-4, atol=1e-5)


def test_the_fisher_product_is_the_curvature_of_the_kl():
    """As for every distribution, but in the actor's own weights: log σ is a matrix here."""
    actor, observations = make_actor(), states()
    policy, variables = actor.action_distribution, actor.trainable_variables
    sizes = [int(np.prod(v.shape)) for v in variables]
    old = tf.stop_gradient(actor(observations))
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            kl = tf.reduce_mean(policy.kl_divergence(p=old, q=actor(observations)))
        gradient = inner.gradient(kl, [v.value for v in variables])
        gradient = tf.concat([tf.reshape(g, [-1]) for g in gradient], axis=0)
        vector = tf.constant(np.random.default_rng(4).normal(size=sum(sizes)), tf.float32)
        along = tf.reduce_sum(gradient * vector)
    hessian = outer.gradient(along, [v.value for v in variables])
    product = trust_region.fisher_vector_product(
        lambda: actor(observations),
        [v.value for v in variables],
        lambda parameters, tangents: policy.fisher_product(parameters, tangents) / 7,
        [tf.reshape(x, v.shape) for x, v in zip(tf.split(vector, sizes), variables)],
    )
    for one, other in zip(product, hessian, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------- rollouts


class Still(envs.NativeEnv):
    """Each copy stays where it was put."""

    observation_space, action_space = Box(-1.0, 1.0, (3,)), ACTIONS

    def reset(self, seeds):
        return 2.0 * keras_pg.randomness.uniform(seeds, (3,)) - 1.0

    def observe(self, state):
        return state

    def step(self, state, actions, seeds):
        nothing = tf.zeros_like(state[:, 0])
        return state, nothing, tf.zeros_like(nothing, tf.bool)


@pytest.mark.parametrize("held_steps", [1, 3, 4, 100])
@pytest.mark.parametrize("path", ["native", "native, alone", "gymnasium"])
def test_noise_is_held_for_so_many_steps_and_drawn_anew_for_each_rollout(path, held_steps):
    """A copy that does not move acts alike as long as the noise does."""
    actor = make_actor(held_steps, observations=Still.observation_space)
    env = Still() if path != "gymnasium" else envs.to_gymnasium(Still(), 3)
    env, _ = make_vector_env(env, 3)
    collector = collector_for(env, actor, num_steps=10, gamma=0.99)
    collector.reset(5)
    rng, rollouts = np.random.default_rng(0), []
    for i in range(2):
        if path == "native":
            after, rollout, _ = collector.next_rollout(tf.constant([7, i], tf.int64))
            collector.assign(after)
            rollouts.append(rollout.actions.numpy())
        else:
            rollouts.append(collector.collect(rng).actions)
    for actions in rollouts:
        changes = np.any(np.abs(np.diff(actions, axis=0)) > 1e-5, axis=-1)
        for i in range(3):
            expected = [t for t in range(9) if (t + 1) % held_steps == 0]
            np.testing.assert_array_equal(np.flatnonzero(changes[:, i]), expected)
        assert len(np.unique(actions[0].round(4), axis=0)) == 3
    assert np.all(np.abs(rollouts[0][-1] - rollouts[1][0]) > 1e-5)


def test_deterministic_actions_are_the_means():
    agent = keras_pg.PPO(actor=make_actor(), seed=0)
    agent.build(OBSERVATIONS, ACTIONS)
    mean, _, _ = in_float64(agent.actor, states())
    np.testing.assert_allclose(agent.act(states()), mean, atol=1e-5)
    assert np.all(np.abs(agent.act(states(), deterministic=False) - mean) > 1e-4)


# --------------------------------------------------------------------------------------- agents


@pytest.mark.parametrize("algorithm", [keras_pg.PPO, keras_pg.TRPO, keras_pg.A2C])
def test_agents_train_save_and_go_on(tmp_path, algorithm):
    with gymnasium.make("Pendulum-v1") as env:
        actor = Actor(env.observation_space, env.action_space, state_dependent_noise=4, seed=0)
    agent = algorithm(actor=actor, seed=0)
    before = actor.log_std.numpy()
    settings = {"num_envs": 4, "num_steps": 32, "steps_per_epoch": 2, "verbose": 0}
    history = agent.fit("Pendulum-v1", epochs=1, **settings).history
    assert all(np.isfinite(history[name][0]) for name in ("env_steps", "nonfinite_updates"))
    assert np.any(actor.log_std.numpy() != before)
    agent.save(tmp_path / "agent.keras")
    restored = keras.models.load_model(tmp_path / "agent.keras")
    assert restored.actor.action_distribution.held_steps == 4
    for each in (agent, restored):
        each.fit("Pendulum-v1", epochs=1, **settings)
    for one, other in zip(agent.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_step_of_trpo_keeps_its_bound():
    agent = keras_pg.TRPO(actor=make_actor(), seed=0, max_kl=0.005, num_minibatches=4)
    agent.build(OBSERVATIONS, ACTIONS)
    agent.compile()
    rollout = make_rollout(agent, T=64)
    before = agent.actor(rollout.observations.reshape(-1, 3))
    logs = step(agent, rollout, eagerly=True)
    after = agent.actor(rollout.observations.reshape(-1, 3))
    kl = tf.reduce_mean(agent.actor.action_distribution.kl_divergence(p=before, q=after))
    np.testing.assert_allclose(logs["kl"], kl, rtol=1e-3)
    assert logs["line_search_success"] == 1 and 0.001 < kl <= 0.005 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("action_space", "keywords"),
    [
        (Discrete(2), {"state_dependent_noise": 4}),
        (ACTIONS, {"state_dependent_noise": 4, "squash": True}),
        (ACTIONS, {"state_dependent_noise": 0}),
        (ACTIONS, {"state_dependent_noise": True}),
    ],
    ids=["discrete", "squashed", "0 steps", "no number"],
)
def test_what_it_does_not_apply_to_is_refused(action_space, keywords):
    with pytest.raises((ValueError, TypeError), match="state_dependent_noise"):
        Actor(OBSERVATIONS, action_space, **keywords)
