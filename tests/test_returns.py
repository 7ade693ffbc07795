"""Facts about `gae` and `normalize`.

Comparisons with an oracle run in float64, where a few dozen operations on numbers of order 1 leave
an error below 1e-14: the tolerance 1e-12 is rounding and nothing else.
"""

import numpy as np
import pytest
import tensorflow as tf

from keras_pg.returns import gae, n_step, normalize, reward_to_go, total_return

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def slow_gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda, valid):
    """Eq. 16 of the GAE paper as it is printed: Â_t = Σ_l (γλ)^l δ_{t+l}, to the episode's end."""
    advantages = np.zeros_like(rewards)
    steps, envs = rewards.shape
    for n in range(envs):
        for t in range(steps):
            for k in range(t, steps):
                if not valid[k, n]:
                    break
                bootstrap = 0.0 if terminated[k, n] else gamma * next_values[k, n]
                delta = rewards[k, n] + bootstrap - values[k, n]
                advantages[t, n] += (gamma * gae_lambda) ** (k - t) * delta
                if terminated[k, n] or truncated[k, n]:
                    break
    return advantages


def random_rollout(steps, envs=4, seed=0):
    """Rewards, values, next values, and both flags, set often and sometimes together."""
    rng = np.random.default_rng(seed)
    return (
        *rng.normal(size=(3, steps, envs)),
        rng.random((steps, envs)) < 0.3,
        rng.random((steps, envs)) < 0.3,
    )


def one_env(rewards, values, next_values, terminated=(), truncated=()):
    """[T, 1] arguments in float64; flags are given as the steps where they are set."""
    steps = np.arange(len(rewards))[:, None]
    floats = (np.array(x, np.float64)[:, None] for x in (rewards, values, next_values))
    return (*floats, np.isin(steps, terminated), np.isin(steps, truncated))


def golden(boundary, terminated=False, truncated=False, rewards=(1, 1, 1)):
    """The three steps of pitfall 1.1; V(final) = 2 replaces the successor's value at `boundary`."""
    next_values = [0.4, 0.3, 0.7]
    if terminated or truncated:
        next_values[boundary] = 2.0
    arguments = one_env(
        rewards,
        [0.5, 0.4, 0.3],
        next_values,
        [boundary] if terminated else [],
        [boundary] if truncated else [],
    )
    return gae(*arguments, gamma=0.9, gae_lambda=0.8).numpy()[:, 0]


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("with_invalid_rows", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_gae_is_the_double_sum_of_equation_16(steps, gae_lambda, with_invalid_rows, seed):
    rollout = random_rollout(steps, seed=seed)
    valid = np.random.default_rng(seed + 10).random((steps, 4)) < 0.8
    valid = valid if with_invalid_rows else np.ones_like(valid)
    fast = gae(
        *rollout,
        gamma=0.93,
        gae_lambda=gae_lambda,
        valid=valid if with_invalid_rows else None,
    )
    np.testing.assert_allclose(fast, slow_gae(*rollout, 0.93, gae_lambda, valid), **ROUNDING)


@pytest.mark.parametrize(
    ("boundary", "flags", "expected"),
    [
        (1, {}, [2.175872, 1.8276, 1.33]),
        (1, {"truncated": True}, [2.588, 2.4, 1.33]),
        (1, {"terminated": True}, [1.292, 0.6, 1.33]),
        (0, {"truncated": True}, [2.3, 1.8276, 1.33]),
        (0, {"terminated": True}, [0.5, 1.8276, 1.33]),
        (2, {"truncated": True}, [2.7824, 2.67, 2.5]),
        (2, {"terminated": True}, [1.84928, 1.374, 0.7]),
    ],
)
def test_golden_vectors(boundary, flags, expected):
    np.testing.assert_allclose(golden(boundary, **flags), expected, **ROUNDING)


@pytest.mark.parametrize("boundary", [0, 1, 2])
def test_both_flags_mean_terminated(boundary):
    both = golden(boundary, terminated=True, truncated=True)
    np.testing.assert_array_equal(both, golden(boundary, terminated=True))


@pytest.mark.parametrize(
    "flags",
    [{"truncated": True}, {"terminated": True}, {"truncated": True, "terminated": True}],
)
def test_a_reward_after_the_boundary_does_not_reach_back_across_it(flags):
    before, after = golden(1, **flags), golden(1, **flags, rewards=(1, 1, 1e6))
    np.testing.assert_array_equal(before[:2], after[:2])
    assert after[2] > before[2] + 1e5


def test_the_end_of_the_rollout_bootstraps_as_a_truncation_does():
    rewards, values, next_values, terminated, truncated = random_rollout(9)
    terminated[-1] = truncated[-1] = False
    cut = truncated.copy()
    cut[-1] = True
    open_end, cut_end = (
        gae(rewards, values, next_values, terminated, flags, gamma=0.9, gae_lambda=0.8)
        for flags in (truncated, cut)
    )
    np.testing.assert_array_equal(open_end, cut_end)


def test_reward_one_for_ever_under_a_time_limit_leaves_a_right_critic_no_advantage():
    forever = 1 / (1 - 0.9)
    values = [forever] * 6
    cut = one_env([1] * 6, values, values, truncated=[2, 5])
    np.testing.assert_allclose(gae(*cut, gamma=0.9, gae_lambda=0.8), np.zeros((6, 1)), atol=1e-12)
    ended = one_env([1] * 6, values, values, terminated=[2, 5])
    assert np.all(gae(*ended, gamma=0.9, gae_lambda=0.8).numpy() < -1)


def test_lambda_zero_is_the_td_residual():
    rewards, values, next_values, terminated, _ = rollout = random_rollout(9)
    residual = rewards + 0.9 * np.where(terminated, 0, next_values) - values
    advantages = gae(*rollout, gamma=0.9, gae_lambda=0.0)
    np.testing.assert_allclose(advantages, residual, **ROUNDING)


def test_lambda_one_is_the_discounted_return_with_bootstrap_minus_the_value():
    rewards, values, next_values, terminated, truncated = random_rollout(9)
    # Within an episode the successor's value is the next step's, and the sum telescopes.
    within = ~(terminated | truncated)[:-1]
    next_values[:-1][within] = values[1:][within]
    returns = np.zeros_like(rewards)
    following = next_values[-1]
    for t in reversed(range(9)):
        following = np.where(truncated[t], next_values[t], following)
        following = np.where(terminated[t], 0.0, following)
        following = returns[t] = rewards[t] + 0.9 * following
    advantages = gae(rewards, values, next_values, terminated, truncated, gamma=0.9, gae_lambda=1.0)
    np.testing.assert_allclose(advantages, returns - values, **ROUNDING)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_two_episodes_in_one_rollout_equal_each_alone(flag):
    rng = np.random.default_rng(0)
    first, second = (
        one_env(*rng.normal(size=(3, length)), **{flag: [length - 1]}) for length in (4, 5)
    )
    together = tuple(np.concatenate(pair) for pair in zip(first, second))
    one, two, both = (gae(*x, gamma=0.9, gae_lambda=0.8).numpy() for x in (first, second, together))
    np.testing.assert_array_equal(both, np.concatenate([one, two]))


def test_environments_do_not_mix():
    rollout = random_rollout(9)
    together = gae(*rollout, gamma=0.9, gae_lambda=0.8).numpy()
    for n in range(4):
        alone = gae(*(x[:, n : n + 1] for x in rollout), gamma=0.9, gae_lambda=0.8)
        np.testing.assert_array_equal(together[:, n : n + 1], alone)


@pytest.mark.parametrize("garbage", [1e9, -1e9, np.nan])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_an_invalid_row_changes_nothing_whatever_it_holds(garbage, flags):
    rng = np.random.default_rng(0)
    first = one_env(*rng.normal(size=(3, 4)), truncated=[3])
    second = one_env(*rng.normal(size=(3, 5)))
    reset = (*(np.full((1, 1), garbage) for _ in range(3)), *(np.full((1, 1), x) for x in flags))
    with_reset = tuple(np.concatenate(parts) for parts in zip(first, reset, second))
    valid = np.arange(10)[:, None] != 4
    advantages = gae(*with_reset, gamma=0.9, gae_lambda=0.8, valid=valid).numpy()
    without_reset = tuple(np.concatenate(parts) for parts in zip(first, second))
    expected = gae(*without_reset, gamma=0.9, gae_lambda=0.8).numpy()
    assert advantages[4, 0] == 0
    np.testing.assert_array_equal(np.delete(advantages, 4, axis=0), expected)


def test_no_gradient_reaches_rewards_or_values():
    rewards, values, next_values, terminated, truncated = random_rollout(5)
    floats = [tf.constant(x) for x in (rewards, values, next_values)]
    with tf.GradientTape() as tape:
        tape.watch(floats)
        total = tf.reduce_sum(gae(*floats, terminated, truncated, gamma=0.9, gae_lambda=0.8))
    assert tape.gradient(total, floats) == [None, None, None]


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 1), (1, 2), (2, 3), (6,)])
def test_an_argument_of_another_shape_is_refused(position, shape):
    arguments = [np.zeros((3, 2), np.float32)] * 3 + [np.zeros((3, 2), bool)] * 2
    arguments[position] = np.zeros(shape, arguments[position].dtype)
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        gae(*arguments, gamma=0.9, gae_lambda=0.8)


@pytest.mark.parametrize("shape", [(6,), (3, 2, 1)])
def test_arguments_that_are_not_of_rank_two_are_refused(shape):
    arguments = [np.zeros(shape, np.float32)] * 3 + [np.zeros(shape, bool)] * 2
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        gae(*arguments, gamma=0.9, gae_lambda=0.8)


@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (2,), (3, 2, 1)])
def test_valid_of_another_shape_is_refused(shape):
    arguments = [np.zeros((3, 2), np.float32)] * 3 + [np.zeros((3, 2), bool)] * 2
    with pytest.raises(ValueError, match=r"\[T, N\]"):
        gae(*arguments, gamma=0.9, gae_lambda=0.8, valid=np.ones(shape, bool))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_gae_equals_eager(jit_compile):
    rewards, values, next_values, terminated, truncated = random_rollout(9)
    floats = [tf.constant(x, tf.float32) for x in (rewards, values, next_values)]
    valid = tf.constant(np.random.default_rng(5).random((9, 4)) < 0.8)

    def advantages(floats, valid):
        return gae(*floats, terminated, truncated, gamma=0.9, gae_lambda=0.8, valid=valid)

    compiled = tf.function(advantages, jit_compile=jit_compile)
    # XLA may fuse a multiplication and an addition: some units in the last place of float32 (1e-7).
    np.testing.assert_allclose(
        compiled(floats, valid), advantages(floats, valid), rtol=2e-6, atol=2e-6
    )


# ----------------------------------------------------------------------------------- normalize


def test_normalized_advantages_have_mean_zero_and_standard_deviation_one():
    advantages = np.random.default_rng(0).normal(3.0, 5.0, 64).astype(np.float32)
    normalized = normalize(tf.constant(advantages), tf.ones(64, tf.bool)).numpy()
    exact = advantages.astype(np.float64)
    # Inputs up to 20 carry a float32 error of 1e-6, a fifth of it after division by the std.
    np.testing.assert_allclose(normalized, (exact - exact.mean()) / exact.std(), atol=2e-6)


@pytest.mark.parametrize("garbage", [0.0, 1e9, np.inf, np.nan])
def test_normalization_reads_valid_rows_only_and_zeroes_the_others(garbage):
    advantages = np.random.default_rng(0).normal(3.0, 5.0, 64)
    mask = np.arange(64) % 3 > 0
    kept = advantages[mask]
    advantages[~mask] = garbage
    normalized = normalize(tf.constant(advantages), tf.constant(mask)).numpy()
    assert np.all(normalized[~mask] == 0)
    # 1e-8 is the function's own guard against division by zero.
    np.testing.assert_allclose(normalized[mask], (kept - kept.mean()) / kept.std(), rtol=1e-8)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e9, 1e-30])
@pytest.mark.parametrize("garbage", [None, 1e9, np.nan])
def test_one_valid_row_is_returned_unchanged(value, garbage):
    rows = [value] if garbage is None else [garbage, value, garbage]
    mask = [True] if garbage is None else [False, True, False]
    normalized = normalize(tf.constant(rows, tf.float32), tf.constant(mask)).numpy()
    np.testing.assert_array_equal(normalized, np.where(mask, np.float32(value), 0))


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 100 / 3, 1e6 + 0.1, 1e9, 1e-30])
@pytest.mark.parametrize("count", [2, 3, 7, 256, 1000])
def test_equal_advantages_become_exact_zeros(value, count):
    normalized = normalize(tf.fill([count], np.float32(value)), tf.ones(count, tf.bool))
    np.testing.assert_array_equal(normalized, np.zeros(count))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_normalization_keeps_the_exact_cases(jit_compile):
    compiled = tf.function(normalize, jit_compile=jit_compile)
    equal = tf.fill([256], 0.1)
    np.testing.assert_array_equal(compiled(equal, tf.ones(256, tf.bool)), np.zeros(256))
    one = tf.range(256) == 7
    np.testing.assert_array_equal(compiled(equal, one), np.where(one, np.float32(0.1), 0))
    np.testing.assert_array_equal(compiled(equal, tf.zeros(256, tf.bool)), np.zeros(256))


@pytest.mark.parametrize(
    "advantages",
    [[], [0.0], [1.0, 1.0], [1e-30, 2e-30], [1e18, -1e18], [0.1] * 255 + [0.10000001]],
    ids=["no row", "one row", "equal", "tiny", "huge", "one ulp apart"],
)
def test_normalization_is_never_nan(advantages):
    mask = [True] * len(advantages)
    rows, mask = [*advantages, np.nan], [*mask, False]
    assert np.all(np.isfinite(normalize(tf.constant(rows, tf.float32), tf.constant(mask))))


def test_normalization_forgets_scale_and_shift():
    advantages = np.random.default_rng(0).normal(size=32)
    mask = tf.ones(32, tf.bool)
    plain, moved = (normalize(tf.constant(x), mask) for x in (advantages, 3 * advantages + 5))
    # Not tighter than the 1e-8 added to the standard deviation.
    np.testing.assert_allclose(plain, moved, rtol=2e-8)


@pytest.mark.parametrize(
    ("advantages_shape", "mask_shape"), [((5,), (5, 1)), ((5, 1), (5,)), ((5, 1), (5, 1))]
)
def test_normalization_refuses_b_by_one(advantages_shape, mask_shape):
    with pytest.raises(ValueError, match=r"\[B\]"):
        normalize(tf.zeros(advantages_shape), tf.ones(mask_shape, tf.bool))


def test_minibatches_are_normalized_each_on_its_own():
    rng = np.random.default_rng(1)
    advantages = tf.constant(rng.normal(size=(4, 6)) * [[1], [10], [100], [0]])
    mask = tf.constant(rng.random((4, 6)) < 0.7)
    one_by_one = tf.stack([normalize(*pair) for pair in zip(advantages, mask)])
    np.testing.assert_array_equal(normalize(advantages, mask), one_by_one)


@pytest.mark.parametrize(
    ("advantages_shape", "mask_shape"),
    [((2, 3), (3, 2)), ((2, 3), (3,)), ((1, 2, 3), (1, 2, 3)), ((), ())],
)
def test_minibatches_of_other_shapes_are_refused(advantages_shape, mask_shape):
    with pytest.raises(ValueError, match=r"\[K, B\]"):
        normalize(tf.zeros(advantages_shape), tf.ones(mask_shape, tf.bool))


# ---------------------------------------------------------------------- other sums over rollouts


def slow_sums(rewards, values, next_values, terminated, truncated, gamma, n, valid):
    """(n-step advantage, reward to go, total return) of each step, as sums of their definitions."""
    steps, envs = rewards.shape
    n_steps, to_go, total = (np.zeros_like(rewards) for _ in range(3))
    for i in range(envs):
        first = 0
        for t in range(steps):
            if not valid[t, i] or (t and (terminated | truncated | ~valid)[t - 1, i]):
                first = t
            if not valid[t, i]:
                continue
            taken, rest = 0.0, 0.0
            for k in range(t, steps):
                if k - t < n:
                    taken += gamma ** (k - t) * rewards[k, i]
                rest += gamma ** (k - t) * rewards[k, i]
                cut = terminated[k, i] or truncated[k, i] or k == steps - 1
                cut = cut or not valid[k + 1, i]
                bootstrap = 0.0 if terminated[k, i] else gamma ** (k - t + 1) * next_values[k, i]
                if k - t == n - 1 or (cut and k - t < n):
                    n_steps[t, i] = taken + bootstrap - values[t, i]
                if cut:
                    to_go[t, i] = rest + bootstrap
                    break
            total[t, i] = to_go[first, i]
    return n_steps, to_go, total


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sums_are_those_of_their_definitions_with_reset_rows_too(n, seed):
    rewards, values, next_values, terminated, truncated = random_rollout(12, seed=seed)
    # Only after an episode's end does an environment spend a row on its reset, and that ends none.
    valid = np.ones((12, 4), bool)
    for t in range(1, 12):
        ended = (terminated | truncated)[t - 1] & valid[t - 1]
        valid[t] = ~(ended & (np.arange(4) < 2))
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
    # Inside an episode a successor is the next state.
    goes_on = ~(terminated | truncated)[:-1]
    next_values[:-1] = np.where(goes_on, values[1:], next_values[:-1])
    expected = slow_sums(rewards, values, next_values, terminated, truncated, 0.9, n, valid)
    ends = {"terminated": terminated, "truncated": truncated, "gamma": 0.9, "valid": valid}
    found = (
        n_step(rewards, values, next_values, n=n, **ends),
        reward_to_go(rewards, next_values, **ends),
        total_return(rewards, next_values, **ends),
    )
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one.numpy()[valid], other[valid], **ROUNDING)


def test_nan_is_not_normalized_to_zero():
    advantages, mask = tf.constant([1.0, np.nan, 2.0, 3.0]), tf.constant([True] * 4)
    for jit_compile in (None, False, True):
        compiled = (
            normalize if jit_compile is None else tf.function(normalize, jit_compile=jit_compile)
        )
        assert np.isnan(compiled(advantages, mask)).all()
