"""Fisher-vector products, conjugate gradient, the natural step and the line search, in float64."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from keras_pg import distributions, trust_region

STATES = np.random.default_rng(0).normal(size=(6, 3))
SPACES = {
    "softmax": Discrete(4),
    "gaussian": Box(-1.0, 1.0, (2,)),
    "bernoulli": MultiBinary(3),
    "product of softmaxes": MultiDiscrete([2, 3]),
}
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(3)  # exact to degree 5
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


class Linear:
    """A policy linear in the state, in float64; of a Gaussian the deviations are parameters too."""

    def __init__(self, space, seed=1):
        rng = np.random.default_rng(seed)
        self.policy = distributions.for_action_space(space)
        size = self.policy.state_dependent_size
        self.variables = [tf.Variable(0.5 * rng.normal(size=(3, size)))]
        if self.policy.parameter_size > size:
            self.variables.append(tf.Variable(0.3 * rng.normal(size=size)))

    def __call__(self):
        outputs = STATES @ self.variables[0]
        if len(self.variables) == 1:
            return outputs
        return tf.concat([outputs, tf.zeros_like(outputs) + self.variables[1]], axis=-1)

    def fisher_product(self, vector, damping=0.0):
        return trust_region.fisher_vector_product(
            self,
            self.variables,
            lambda parameters, v: self.policy.fisher_product(parameters, v) / len(STATES),
            vector,
            damping,
        )

    def explicit_fisher(self):
        """Σ_s Σ_a π(a|s) ∇log π ∇log πᵀ / S, the sum over actions exact or by exact quadrature."""
        parameters = self().numpy()
        if not isinstance(self.policy, distributions.DiagonalGaussian):
            counts = {4: [4], 3: [2] * 3, 5: [2, 3]}[parameters.shape[1]]
            choices = []
            for action in itertools.product(*map(range, counts)):
                action = np.reshape(action, self.policy.action_shape)
                actions = np.tile(action, (len(STATES), *[1] * action.ndim))
                choices.append((actions, np.exp(self.policy.log_prob(self(), actions))))
        else:
            mean, log_std = np.split(parameters, 2, axis=-1)
            choices = [
                (mean + np.exp(log_std) * np.array([x, y]), np.full(len(STATES), wx * wy))
                for x, wx in zip(NODES, NODE_WEIGHTS)
                for y, wy in zip(NODES, NODE_WEIGHTS)
            ]
        fisher = 0.0
        for actions, probabilities in choices:
            with tf.GradientTape() as tape:
                log_probs = self.policy.log_prob(self(), tf.constant(actions))
            scores = [j.numpy() for j in tape.jacobian(log_probs, self.variables)]
            scores = np.concatenate([x.reshape(len(STATES), -1) for x in scores], axis=1)
            fisher = fisher + (scores * probabilities[:, None]).T @ scores / len(STATES)
        return fisher


def flat(vector):
    return np.concatenate([np.ravel(v) for v in vector])


def random_vector(variables, seed):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.normal(size=v.shape)) for v in variables]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_product_is_that_with_the_explicit_fisher_matrix(space):
    policy = Linear(space)
    fisher = policy.explicit_fisher()
    for seed in range(5):
        v = random_vector(policy.variables, seed)
        np.testing.assert_allclose(flat(policy.fisher_product(v)), fisher @ flat(v), rtol=1e-9)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_product_is_the_hessian_of_the_kl_at_the_old_policy(space):
    policy = Linear(space)
    old, v = tf.constant(policy().numpy()), random_vector(policy.variables, 0)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            kl = tf.reduce_mean(policy.policy.kl_divergence(p=old, q=policy()))
        slope = trust_region.dot(inner.gradient(kl, policy.variables), v)
    assert abs(float(kl)) < 1e-12  # the value is zero, its Hessian is not
    hessian_product = outer.gradient(slope, policy.variables)
    np.testing.assert_allclose(flat(policy.fisher_product(v)), flat(hessian_product), rtol=1e-8)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_product_is_linear_symmetric_and_positive(space):
    policy = Linear(space)
    u, v = (random_vector(policy.variables, seed) for seed in (1, 2))
    Fu, Fv = policy.fisher_product(u), policy.fisher_product(v)
    both = policy.fisher_product([2.0 * a - 3.0 * b for a, b in zip(u, v)])
    np.testing.assert_allclose(flat(both), 2.0 * flat(Fu) - 3.0 * flat(Fv), rtol=1e-9)
    np.testing.assert_allclose(trust_region.dot(u, Fv), trust_region.dot(v, Fu), rtol=1e-9)
    for seed in range(100):
        w = random_vector(policy.variables, seed)
        assert trust_region.dot(w, policy.fisher_product(w)) >= -1e-12


def test_damping_adds_its_multiple_of_the_vector():
    policy = Linear(SPACES["gaussian"])
    v = random_vector(policy.variables, 0)
    difference = flat(policy.fisher_product(v, 0.25)) - flat(policy.fisher_product(v))
    np.testing.assert_allclose(difference, 0.25 * flat(v), rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_solves_a_positive_system_in_as_many_steps_as_it_has_dimensions(seed):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    matrix = basis @ np.diag(np.linspace(1.0, 50.0, 10)) @ basis.T
    b = rng.normal(size=10)

    def matvec(v):
        image = tf.linalg.matvec(matrix, tf.concat([tf.reshape(part, [-1]) for part in v], 0))
        return [tf.reshape(image[:4], (2, 2)), image[4:]]

    parts = [tf.constant(b[:4].reshape(2, 2)), tf.constant(b[4:])]
    x = trust_region.conjugate_gradient(matvec, parts, iterations=10, tolerance=0.0)
    np.testing.assert_allclose(flat(x), np.linalg.solve(matrix, b), atol=1e-8)


def test_conjugate_gradient_of_a_zero_gradient_is_zero():
    x = trust_region.conjugate_gradient(lambda v: v, [tf.zeros(3)], iterations=10)
    np.testing.assert_array_equal(x[0], np.zeros(3))


def test_the_natural_gradient_is_the_solution_with_the_explicit_fisher_matrix():
    policy = Linear(SPACES["softmax"])
    gradient = random_vector(policy.variables, 3)
    damped = policy.explicit_fisher() + 0.01 * np.eye(12)
    x = trust_region.conjugate_gradient(
        lambda v: policy.fisher_product(v, 0.01), gradient, iterations=60, tolerance=1e-20
    )
    np.testing.assert_allclose(flat(x), np.linalg.solve(damped, flat(gradient)), rtol=1e-6)


@pytest.mark.parametrize("max_kl", [1e-4, 0.01, 1.0])
def test_on_a_quadratic_kl_the_step_costs_exactly_max_kl(max_kl):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    matrix = root @ root.T + np.eye(5)

    def matvec(v):
        return [tf.linalg.matvec(matrix, v[0])]

    step = trust_region.natural_step(matvec, [tf.constant(rng.normal(size=5))], max_kl)
    kl = 0.5 * trust_region.dot(step, matvec(step))
    np.testing.assert_allclose(kl, max_kl, rtol=1e-6)
    # With damping in the product, the undamped model's KL is less.
    damped = trust_region.natural_step(
        lambda v: [m + 0.5 * x for m, x in zip(matvec(v), v)], step, max_kl
    )
    assert 0.5 * trust_region.dot(damped, matvec(damped)) < max_kl


@pytest.mark.parametrize("direction", [0.0, np.nan])
def test_no_step_is_taken_along_a_direction_without_curvature(direction):
    step = trust_region.natural_step(lambda v: v, [tf.fill((3,), np.float64(direction))], 0.01)
    np.testing.assert_array_equal(step[0], np.zeros(3))


@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_no_step_is_taken_where_the_quadratic_model_has_no_minimum(curvature):
    direction = [tf.constant([1.0, -2.0, 3.0], tf.float64)]
    step = trust_region.natural_step(lambda v: [curvature * x for x in v], direction, 0.01)
    np.testing.assert_array_equal(step[0], np.zeros(3))


@pytest.mark.parametrize("affine", [True, False])
def test_only_the_natural_gradient_is_the_same_in_other_coordinates(affine):
    """θ = M φ + c: the natural step in φ gives the policy of the natural step in θ."""
    rng = np.random.default_rng(5)
    S, A = STATES.shape[0], 4
    M = np.eye(12) + 0.3 * rng.normal(size=(12, 12))
    theta, advantages = rng.normal(size=12), rng.normal(size=(S, A))

    def logits(phi, coordinates):
        return STATES @ tf.reshape(tf.linalg.matvec(coordinates, phi), (3, A))

    def stepped(coordinates, natural):
        phi = tf.Variable(np.linalg.solve(coordinates, theta))
        categorical = distributions.Categorical(Discrete(A))

        def matvec(v):
            return trust_region.fisher_vector_product(
                lambda: logits(phi, coordinates),
                [phi],
                lambda p, t: categorical.fisher_product(p, t) / S,
                v,
            )

        with tf.GradientTape() as tape:
            probabilities = tf.nn.softmax(logits(phi, coordinates))
            objective = tf.reduce_sum(probabilities * advantages) / S
        gradient = tape.gradient(objective, [phi])
        if natural:
            direction = trust_region.conjugate_gradient(matvec, gradient, 200, 1e-24)
            step = trust_region.natural_step(matvec, direction, 0.01)
        else:
            step = [0.1 * g for g in gradient]
        return tf.nn.softmax(logits(phi + step[0], coordinates)).numpy()

    same = np.abs(stepped(M, affine) - stepped(np.eye(12), affine)).max()
    assert same < 1e-5 if affine else same > 1e-3


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_failed_line_search_leaves_every_weight_bit_for_bit(jit_compile):
    rng = np.random.default_rng(0)
    variables = [tf.Variable(rng.normal(size=shape), dtype=tf.float32) for shape in ((3, 2), (4,))]
    before = [v.numpy() for v in variables]
    step = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in variables]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def search():
        return trust_region.line_search(variables, step, lambda: tf.constant(False), 0.8, 10)

    found, tried = search()
    assert not found and tried == 10
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_line_search_takes_the_first_acceptable_step(jit_compile):
    x = tf.Variable([1.0, 2.0])

    @tf.function(jit_compile=jit_compile, autograph=False)
    def search():
        # 1 + 8 · 0.5^k is at most 3 from k = 2 on.
        return trust_region.line_search(
            [x], [tf.constant([8.0, 0.0])], lambda: x[0] <= 3.0, 0.5, 10
        )

    found, tried = search()
    assert found and tried == 3
    np.testing.assert_array_equal(x, [3.0, 2.0])
