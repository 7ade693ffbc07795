"""Natural gradients: Fisher-vector products, conjugate gradient and line search, of anything.

A *vector* here is a list of tensors, shaped as the variables it belongs to. Nothing is ever
inverted, and no Fisher matrix formed: F v costs about as much as a gradient.
"""

import tensorflow as tf


def dot(u, v):
    """⟨u, v⟩ of two lists of tensors."""
    return tf.add_n([tf.reduce_sum(a * b) for a, b in zip(u, v, strict=True)])


def _axpy(a, x, y):
    """A x + y."""
    return [a * xi + yi for xi, yi in zip(x, y, strict=True)]


def fisher_vector_product(output, variables, metric, vector, damping=0.0):
    """(F + c I) v for the Gauss-Newton form of the Fisher matrix, F = Jᵀ M J.

    J is the Jacobian of the network's output in its variables. With the distribution's parameters
    as the output, and their Fisher information as the metric M, F is the exact Fisher matrix
    E[∇log π ∇log πᵀ], the expectation over actions taken in closed form. With log π(a|s) of sampled
    actions as the output and M = 1 it is the empirical one.

    Args:
        output: () → float [B, ...], the network at the current variables.
        variables: list of V variables.
        metric: (output, tangents) → M · tangents, both like the output; it weighs the B rows too.
        vector: v, list of V tensors.
        damping: c.

    Returns:
        List of V tensors.

    Reference: Martens, 2020, "New insights and perspectives on the natural gradient method",
    eq. 13 and section 9.
    """
    # J v as the derivative of Jᵀ u in u, which is linear in u: by reverse mode twice, since forward
    # mode does not go through the loops of recurrent layers.
    with tf.GradientTape() as outer:
        with tf.GradientTape(persistent=True) as inner:
            y = output()
        u = tf.zeros_like(y)
        outer.watch(u)
        product = inner.gradient(y, variables, u, tf.UnconnectedGradients.ZERO)
        product = [tf.convert_to_tensor(p) for p in product]
    tangents = outer.gradient(product, u, vector, tf.UnconnectedGradients.ZERO)
    metric_tangents = tf.stop_gradient(metric(y, tangents))
    product = inner.gradient(y, variables, metric_tangents, tf.UnconnectedGradients.ZERO)
    return _axpy(damping, vector, [tf.convert_to_tensor(p) for p in product])


def conjugate_gradient(matvec, b, iterations, tolerance=1e-10):
    """Solves A x = b for a symmetric positive definite A, starting from x = 0.

    Args:
        matvec: list of tensors v → A v.
        b: list of tensors.
        iterations: at most so many; d of them solve a system of dimension d exactly.
        tolerance: stop once ‖b - A x‖² is at most this times ‖b‖².

    Returns:
        x, list of tensors; zeros where b is zero.

    Reference: Hestenes and Stiefel, 1952, "Methods of conjugate gradients", section 3.
    """
    bound = tolerance * dot(b, b)

    def iterate(k, x, residual, direction, squared):
        image = matvec(direction)
        curvature = dot(direction, image)
        # In exact arithmetic A is positive; where rounding makes it not so, x stays.
        step = tf.where(curvature > 0, squared / curvature, 0.0)
        x = _axpy(step, direction, x)
        residual = _axpy(-step, image, residual)
        next_squared = tf.where(curvature > 0, dot(residual, residual), 0.0)
        direction = _axpy(tf.math.divide_no_nan(next_squared, squared), direction, residual)
        return k + 1, x, residual, direction, next_squared

    _, x, _, _, _ = tf.while_loop(
        lambda k, x, residual, direction, squared: (k < iterations) & (squared > bound),
        iterate,
        (tf.constant(0), [tf.zeros_like(v) for v in b], list(b), list(b), dot(b, b)),
    )
    return x


def natural_step(matvec, direction, max_kl):
    """The largest step along a direction at which the quadratic model of the KL is `max_kl`.

        β x,   β = √(2 ε / xᵀ F x)

    Args:
        matvec: v → F v.
        direction: x, list of tensors.
        max_kl: ε.

    Returns:
        List of tensors; zeros where xᵀ F x is not a positive number.

    Reference: Schulman et al., 2015, arXiv:1502.05477, appendix C.
    """
    curvature = dot(direction, matvec(direction))
    usable = tf.math.is_finite(curvature) & (curvature > 0)
    scale = tf.sqrt(2.0 * max_kl / tf.where(usable, curvature, tf.ones_like(curvature)))
    return [tf.where(usable, scale * x, tf.zeros_like(x)) for x in direction]


def line_search(variables, step, acceptable, shrink, iterations):
    """Takes the first of the steps `step`, shrink·`step`, shrink²·`step`, … that is acceptable.

    Args:
        variables: list of variables; they hold the accepted point in the end, or, if there is
            none, bit for bit the values they began with.
        step: list of tensors.
        acceptable: () → bool scalar, at the variables' values of that moment.
        shrink: in (0, 1).
        iterations: how many steps are tried.

    Returns:
        (bool scalar: one was accepted, int32 scalar: how many were tried).

    Reference: Schulman et al., 2015, arXiv:1502.05477, appendix C.
    """
    start = [tf.convert_to_tensor(v) for v in variables]

    def attempt(k, scale, found):
        for variable, origin, direction in zip(variables, start, step, strict=True):
            variable.assign(origin + scale * direction)
        return k + 1, shrink * scale, acceptable()

    tried, _, found = tf.while_loop(
        lambda k, scale, found: (k < iterations) & ~found,
        attempt,
        (tf.constant(0), tf.constant(1.0, start[0].dtype), tf.constant(False)),
    )
    for variable, origin in zip(variables, start, strict=True):
        variable.assign(tf.where(found, variable, origin))
    return found, tried
