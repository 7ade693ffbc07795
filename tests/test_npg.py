"""NPG and TRPO: the trust region, and the identities between them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_pg
from keras_pg.agents.trpo import TRPO
from stepping import (
    ACTION_SPACES,
    CONTINUOUS,
    DISCRETE,
    OBSERVATIONS,
    built,
    make_rollout,
    step,
    weights,
)

KINDS = {name: (space, False) for name, space in ACTION_SPACES.items()}
KINDS["squashed"] = (CONTINUOUS, True)
every_distribution = pytest.mark.parametrize("space, squash", KINDS.values(), ids=KINDS)
# Of the critic's regression.
LITTLE = {"num_minibatches": 4, "critic_epochs": 2, "learning_rate": 0.01}


def kl_between(agent, before, after, rollout):
    """Mean KL(before ‖ after) over valid rows, of two sets of actor weights."""
    policy, rows = agent.actor.action_distribution, rollout.observations[rollout.valid]
    parameters = []
    for values in (before, after):
        agent.actor.set_weights(values)
        parameters.append(agent.actor(rows))
    return float(tf.reduce_mean(policy.kl_divergence(p=parameters[0], q=parameters[1])))


@every_distribution
@pytest.mark.parametrize(
    "algorithm, max_kl", [(keras_pg.NPG, 0.0005), (keras_pg.TRPO, 0.0005), (keras_pg.TRPO, 0.005)]
)
def test_the_kl_of_a_step_is_what_is_reported_and_about_max_kl(algorithm, max_kl, space, squash):
    agent = built(algorithm, space, squash_actions=squash, max_kl=max_kl, cg_damping=1e-3, **LITTLE)
    rollout = make_rollout(agent, T=64, invalid=[(0, 1), (9, 3)])
    before = agent.actor.get_weights()
    logs = step(agent, rollout, eagerly=True)
    after = agent.actor.get_weights()
    kl = kl_between(agent, before, after, rollout)
    np.testing.assert_allclose(logs["kl"], kl, rtol=1e-3, atol=1e-7)
    assert 0.25 * max_kl < kl < 1.5 * max_kl
    if algorithm is keras_pg.TRPO:
        assert logs["line_search_success"] == 1 and kl <= max_kl * (1 + 1e-5)


@every_distribution
def test_a_line_search_that_takes_its_first_step_is_npg(space, squash, monkeypatch):
    trpo, npg = (
        built(kind, space, squash_actions=squash, **LITTLE)
        for kind in (keras_pg.TRPO, keras_pg.NPG)
    )
    rollout = make_rollout(trpo, T=32)
    search = keras_pg.agents.trpo.trust_region.line_search
    monkeypatch.setattr(
        keras_pg.agents.trpo.trust_region,
        "line_search",
        lambda variables, step, acceptable, *rest: search(
            variables, step, lambda: tf.constant(True), *rest
        ),
    )
    logs = step(trpo, rollout, eagerly=True)
    step(npg, rollout, eagerly=True)
    assert logs["line_search_steps"] == 1
    for one, other in zip(weights(trpo), weights(npg), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@every_distribution
def test_a_failed_line_search_leaves_the_actor_bit_for_bit(space, squash):
    class Impossible(TRPO):
        def move(self, variables, step, surrogate_and_kl):
            def without_improvement():
                surrogate, kl = surrogate_and_kl()
                return tf.minimum(surrogate, -1e9), kl

            return super().move(variables, step, without_improvement)

    agent = built(Impossible, space, squash_actions=squash, **LITTLE)
    before = agent.actor.get_weights()
    logs = step(agent, make_rollout(agent, T=32), eagerly=True)
    assert logs["line_search_success"] == 0 and logs["line_search_steps"] == 10
    for one, other in zip(before, agent.actor.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("algorithm", [keras_pg.NPG, keras_pg.TRPO])
def test_without_a_gradient_nothing_moves(algorithm):
    agent = built(algorithm, normalize_advantages=False, **LITTLE)
    before = agent.actor.get_weights()
    # Rewards that the critic has foreseen: every advantage is 0.
    rollout = make_rollout(agent, T=16)
    for variable in agent.critic.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    logs = step(agent, rollout._replace(rewards=np.zeros_like(rollout.rewards)), eagerly=True)
    assert logs["kl"] == 0
    for one, other in zip(before, agent.actor.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_critic_does_not_move_what_it_shares_with_the_policy():
    shared = keras_pg.mlp((8,), seed=1)
    agent = keras_pg.TRPO(shared, shared, seed=0, normalize_observations=False, max_kl=1e-12)
    agent.build(OBSERVATIONS, DISCRETE)
    before = agent.actor.get_weights()
    head = agent.critic.head.kernel.numpy()
    rollout = make_rollout(agent, T=64)
    agent.compile(keras.optimizers.Adam(0.1), jit_compile=False)
    step(agent, rollout, eagerly=True)
    for one, other in zip(before, agent.actor.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.abs(agent.critic.head.kernel.numpy() - head).max() > 0.1


def test_rows_that_are_no_transition_do_not_count():
    """Garbage in an invalid row changes neither the step nor the critic's targets."""
    agents = [built(keras_pg.TRPO, **{**LITTLE, "num_minibatches": 1}) for _ in range(2)]
    rollout = make_rollout(agents[0], T=16, invalid=[(3, 1), (7, 0)])
    garbage = rollout._replace(rewards=np.where(rollout.valid, rollout.rewards, 1e6))
    (
        step(agents[0], rollout, eagerly=True),
        step(agents[1], garbage._replace(rewards=garbage.rewards.astype("float32")), eagerly=True),
    )
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@every_distribution
def test_the_fisher_product_is_that_of_scores(fisher, space, squash):
    """Exact: the mean of score products over many actions; empirical: over those of the rollout."""
    agent = built(keras_pg.NPG, space, squash_actions=squash, fisher=fisher, cg_damping=0.0)
    rng, policy = np.random.default_rng(0), agent.actor.action_distribution
    observations = rng.uniform(-1, 1, (4, 3)).astype("float32")
    draws = 1 if fisher == "empirical" else 4000
    rows = np.repeat(observations, draws, axis=0)
    actions = policy.sample(agent.actor(rows), policy.draw_noise(rng, (len(rows),)))
    variables = [v.value for v in agent.actor.trainable_variables]
    vector = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in variables]
    with tf.autodiff.ForwardAccumulator(variables, vector) as accumulator:
        log_probs = policy.log_prob(agent.actor(rows), actions)
    along = accumulator.jvp(log_probs)
    quadratic = tf.square(along).numpy()  # vᵀ s sᵀ v for each row
    found = agent.fisher_product(
        observations, actions[:: max(draws, 1)], tf.fill((4,), 0.25), vector
    )
    found = sum(float(tf.reduce_sum(f * v)) for f, v in zip(found, vector))
    if fisher == "empirical":
        np.testing.assert_allclose(found, quadratic.mean(), rtol=1e-4)
    else:
        error = quadratic.std() / np.sqrt(len(quadratic))
        assert abs(found - quadratic.mean()) < 3 * error


@pytest.mark.parametrize("algorithm, space, jit_compile", [
    (keras_pg.TRPO, DISCRETE, False),
    pytest.param(keras_pg.TRPO, CONTINUOUS, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_eager_graph_and_xla_agree(algorithm, space, jit_compile):
    # Damped, since conjugate gradient multiplies rounding by the condition of its system.
    agents = [built(algorithm, space, cg_damping=1.0, **LITTLE) for _ in range(2)]
    rollout = tf.nest.map_structure(tf.constant, make_rollout(agents[0]))
    agents[0].train_step(rollout)
    tf.function(agents[1].train_step, autograph=False, jit_compile=jit_compile)(rollout)
    for one, other in zip(*map(weights, agents), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_an_encoder_may_be_recurrent():
    keras.utils.set_random_seed(0)
    encoder = keras.Sequential([keras.layers.Reshape((3, 1)), keras.layers.GRU(4)])
    agent = keras_pg.NPG(encoder, keras_pg.mlp((4,)), seed=0, max_kl=1e-3, num_minibatches=4)
    agent.build(OBSERVATIONS, DISCRETE)
    agent.compile(jit_compile=False)
    rollout = tf.nest.map_structure(tf.constant, make_rollout(agent, T=32))
    train_step = tf.function(agent.train_step, autograph=False, jit_compile=True)
    assert 0.25e-3 < float(train_step(rollout)["kl"]) < 2e-3


def test_a_saved_agent_makes_the_same_next_update(tmp_path):
    agent = built(keras_pg.TRPO, CONTINUOUS, max_kl=0.02, cg_iters=7, fisher="empirical", **LITTLE)
    rollout = make_rollout(agent)
    step(agent, rollout, eagerly=True)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.models.load_model(tmp_path / "agent.keras")
    assert loaded.get_config()["cg_iters"] == 7
    step(agent, rollout, eagerly=True), step(loaded, rollout, eagerly=True)
    for one, other in zip(agent.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_kl": 0.0}, "max_kl .*0"),
        ({"cg_iters": 0}, "cg_iters .*0"),
        ({"cg_damping": -0.1}, "cg_damping .*-0.1"),
        ({"fisher": "diagonal"}, "fisher .*'diagonal'"),
        ({"critic_epochs": 1.5}, "critic_epochs .*1.5"),
        ({"backtrack_ratio": 1.0}, "backtrack_ratio .*1.0"),
        ({"backtrack_ratio": 0.0}, "backtrack_ratio .*0.0"),
        ({"backtrack_iters": 0}, "backtrack_iters .*0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_pg.TRPO(**arguments)


def test_a_second_optimizer_is_refused():
    with pytest.raises(ValueError, match="The actor has no optimizer"):
        keras_pg.TRPO().compile("adam", critic_optimizer="adam")
