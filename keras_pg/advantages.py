"""Advantage estimators Ψ_t, as objects that any agent takes as `advantage=`.

The policy gradient is E[Σ_t Ψ_t ∇ log π(a_t|s_t)] (Schulman et al., 2016, arXiv:1506.02438, eq. 1).
An estimator is given by name or as an object, the way Keras takes losses. Objects can be added and
scaled: `0.5 * GAE(0.9) + 0.5 * TDResidual()`. The equations are functions in `returns.py`.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_pg.hyperparameters import check_count, check_range
from keras_pg.normalization import RunningMoments
from keras_pg.returns import (
    first_of_episode,
    gae,
    group_advantages,
    n_step,
    reward_to_go,
    total_return,
)

register = keras.saving.register_keras_serializable("keras_pg")


class Evaluated(NamedTuple):
    """A rollout as an estimator sees it: with a critic's values, time-major [T, N].

    Without a critic `values` and `next_values` are zeros: nothing bootstraps. With a critic of
    actions, V(s) = E[Q(s, a)] under the policy.
    """

    observations: Any  # [T, N, ...] raw
    rewards: Any  # float [T, N], scaled if the agent scales them
    values: Any  # float [T, N] V(s_t)
    next_values: Any  # float [T, N] V(s_{t+1}), before any reset; 0 of a terminal state
    action_values: Any  # float [T, N] Q(s_t, a_t), or None
    terminated: Any  # bool [T, N]
    truncated: Any  # bool [T, N]
    valid: Any  # bool [T, N]
    timesteps: Any  # int32 [T, N] t within the episode
    gamma: float
    gae_lambda: float  # of the agent
    group_size: int = 1  # G, episodes in a row that began alike

    @property
    def _ends(self):
        return {"terminated": self.terminated, "truncated": self.truncated}

    def gae(self, gae_lambda):
        """`gae` with another λ than the agent's."""
        return gae(
            self.rewards,
            self.values,
            self.next_values,
            **self._ends,
            gamma=self.gamma,
            gae_lambda=gae_lambda,
            valid=self.valid,
        )

    @property
    def predictions(self):
        """What the critic is regressed with: Q(s_t, a_t), or V(s_t)."""
        return self.values if self.action_values is None else self.action_values

    def targets(self):
        """What it is regressed on: the λ-return, V(s_t) + Σ_l (γλ)^l δ_{t+l}."""
        return self.gae(self.gae_lambda) + self.values

    def returns(self, of=reward_to_go):
        """`reward_to_go`, or `total_return`, of the rewards alone: beyond a cut there is nothing.

        A critic, which another term of a sum may have brought, does not make them another Ψ.
        """
        nothing = tf.zeros_like(self.next_values)
        return of(self.rewards, nothing, **self._ends, gamma=self.gamma, valid=self.valid)


class Advantage:
    """Base class of the estimators: a function Ψ of an `Evaluated` rollout, [T, N].

    Attributes:
        critic: what it needs: None, "state" for V(s), or "action" for Q(s, a).
        grouped: whether it compares whole episodes that began alike, as `GRPO` plays them.
        layers: Keras layers that hold statistics of its own, to be saved with the agent.

    A subclass defines `__call__`. With arguments it defines `get_config` too, and is registered by
    `keras.saving.register_keras_serializable`, to be saved with an agent.
    """

    critic = None
    grouped = False
    layers = ()

    def __call__(self, steps):
        """Ψ_t [T, N], no gradient."""
        raise NotImplementedError

    def discounted(self, steps):
        """γ^t Ψ_t, t counted from the start of the episode: unbiased for the discounted return."""
        return self._discounts(steps) * self(steps)

    def _discounts(self, steps):
        return tf.pow(steps.gamma, tf.cast(steps.timesteps, steps.rewards.dtype))

    def learn(self, steps):
        """Called after each update, to merge the rollout into `layers`."""

    def fresh(self):
        """Itself, or with `layers` a copy with statistics that have seen nothing."""
        return type(self).from_config(self.get_config()) if self.layers else self

    def __add__(self, other):
        return Sum([(1.0, self), (1.0, other)])

    def __sub__(self, other):
        return Sum([(1.0, self), (-1.0, other)])

    def __mul__(self, factor):
        return Sum([(factor, self)])

    __rmul__ = __mul__

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        settings = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({settings})"


@register
class Sum(Advantage):
    """Σ c_i Ψ_i. Made by `+`, `-` and `*`.

    >>> estimator = 0.5 * GAE(0.9) + 0.5 * ActionAdvantage()
    >>> estimator.critic
    'action'
    """

    def __init__(self, terms):
        self.terms = []
        for factor, advantage in terms:
            inner = advantage.terms if isinstance(advantage, Sum) else [(1.0, advantage)]
            self.terms += [(float(factor) * other, term) for other, term in inner]
        critics = {advantage.critic for _, advantage in self.terms}
        # A critic of actions has a V(s) as well.
        self.critic = next((kind for kind in ("action", "state") if kind in critics), None)
        self.grouped = any(advantage.grouped for _, advantage in self.terms)
        self._distinct = list({id(advantage): advantage for _, advantage in self.terms}.values())
        self.layers = [layer for advantage in self._distinct for layer in advantage.layers]

    def __call__(self, steps):
        return tf.add_n([factor * advantage(steps) for factor, advantage in self.terms])

    def discounted(self, steps):
        return tf.add_n([factor * advantage.discounted(steps) for factor, advantage in self.terms])

    def learn(self, steps):
        for advantage in self._distinct:
            advantage.learn(steps)

    def fresh(self):
        fresh = {id(advantage): advantage.fresh() for advantage in self._distinct}
        return Sum([(factor, fresh[id(advantage)]) for factor, advantage in self.terms])

    def __repr__(self):
        return " + ".join(f"{factor:g} * {advantage!r}" for factor, advantage in self.terms)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {"terms": [[factor, serialize(advantage)] for factor, advantage in self.terms]}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls([(factor, deserialize(advantage)) for factor, advantage in config["terms"]])


@register
class TotalReturn(Advantage):
    """Ψ_t = Σ_k γ^k r_k over the whole episode. No critic, the highest variance.

    It discounts from the start of the episode by itself, so that with whole episodes
    `discount_weighting` changes nothing.
    """

    def __call__(self, steps):
        return steps.returns(total_return)

    def discounted(self, steps):
        # Of an episode that began before the rollout, the part within the rollout starts late.
        first = first_of_episode(
            self._discounts(steps), steps.terminated, steps.truncated, steps.valid
        )
        return first * self(steps)


@register
class RewardToGo(Advantage):
    """Ψ_t = Σ_{k≥t} γ^{k-t} r_k. No critic; nothing is known beyond a time limit."""

    def __call__(self, steps):
        return steps.returns()


@register
class ReturnMinusBaseline(Advantage):
    """Ψ_t = Σ_{k≥t} γ^{k-t} r_k - b(s_t).

    Args:
        baseline: "value" for a learned V(s), "mean" for the mean of the returns seen so far,
            or a function from observations [B, ...] to float [B], which does not learn. To be saved
            with an agent it must be a Keras model, or be registered with Keras.

    Reference: Williams, 1992; Greensmith et al., 2004, "Variance reduction techniques", eq. 5.
    """

    def __init__(self, baseline="value"):
        if baseline not in ("value", "mean") and not callable(baseline):
            raise ValueError(
                f'baseline must be "value", "mean" or a function, received {baseline!r}.'
            )
        self.baseline = baseline
        self.critic = "state" if baseline == "value" else None
        self.layers = [RunningMoments(())] if baseline == "mean" else []
        if isinstance(baseline, keras.layers.Layer):
            self.layers = [baseline]

    def __call__(self, steps):
        if self.baseline == "value":
            return steps.gae(1.0)
        returns = steps.returns()
        if self.baseline == "mean":
            return returns - tf.cast(self.layers[0].mean, returns.dtype)
        rows = tf.nest.map_structure(
            lambda x: tf.reshape(x, [-1, *x.shape[2:]]), steps.observations
        )
        baseline = tf.stop_gradient(tf.cast(self.baseline(rows), returns.dtype))
        return returns - tf.reshape(baseline, returns.shape)

    def learn(self, steps):
        if self.baseline == "mean":
            returns, valid = (tf.reshape(x, [-1]) for x in (steps.returns(), steps.valid))
            self.layers[0].merge(returns, valid)

    def get_config(self):
        return {"baseline": self.baseline}

    @classmethod
    def from_config(cls, config):
        # A name stays a name; a function or a model comes as Keras writes it down.
        baseline = config["baseline"]
        if isinstance(baseline, dict):
            baseline = keras.saving.deserialize_keras_object(baseline)
        return cls(baseline)


@register
class GroupRelative(Advantage):
    """Ψ_t = (R_i - mean(R_group)) / (σ + 1e-4) for every step of episode i. No critic.

    R is the return of a whole episode, and its group the episodes that began in the same state:
    how much better it went than those. For agents that play groups, `GRPO`.

    Args:
        scale: what σ is: the "group"'s own standard deviation, that of the whole "batch" of
            returns, or None to divide by nothing.

    Raises:
        ValueError: another `scale`.

    Reference: Shao et al., 2024, arXiv:2402.03300, section 4.1.2; see `returns.group_advantages`.
    """

    grouped = True

    def __init__(self, scale="group"):
        if scale not in ("group", "batch", None):
            raise ValueError(f'scale must be "group", "batch" or None, received {scale!r}.')
        self.scale = scale

    def __call__(self, steps):
        returns = steps.returns()[0]  # of the first step, and so of the whole episode
        by_episode = group_advantages(returns, steps.group_size, self.scale)
        return tf.ones_like(steps.rewards) * by_episode

    def discounted(self, steps):
        """Ψ_t itself: as in `TotalReturn`, returns are discounted from the episode's start."""
        return self(steps)

    def get_config(self):
        return {"scale": self.scale}


@register
class TDResidual(Advantage):
    """Ψ_t = r_t + γ V(s_{t+1}) - V(s_t): one step, the least variance, the most bias."""

    critic = "state"

    def __call__(self, steps):
        return steps.gae(0.0)


@register
class NStep(Advantage):
    """Ψ_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(s_{t+n}) - V(s_t).

    Args:
        n: number of rewards.
    """

    critic = "state"

    def __init__(self, n):
        self.n = check_count("n", n)

    def __call__(self, steps):
        return n_step(
            steps.rewards,
            steps.values,
            steps.next_values,
            steps.terminated,
            steps.truncated,
            gamma=steps.gamma,
            n=self.n,
            valid=steps.valid,
        )

    def get_config(self):
        return {"n": self.n}


@register
class GAE(Advantage):
    """Ψ_t = Σ_l (γλ)^l δ_{t+l}, generalized advantage estimation.

    Args:
        gae_lambda: λ; None for the agent's.
    """

    critic = "state"

    def __init__(self, gae_lambda=None):
        self.gae_lambda = gae_lambda
        if gae_lambda is not None:
            self.gae_lambda = check_range("gae_lambda", gae_lambda, 0.0, 1.0)

    def __call__(self, steps):
        return steps.gae(steps.gae_lambda if self.gae_lambda is None else self.gae_lambda)

    def get_config(self):
        return {"gae_lambda": self.gae_lambda}


@register
class ActionValue(Advantage):
    """Ψ_t = Q(s_t, a_t), from a critic of actions."""

    critic = "action"

    def __call__(self, steps):
        return tf.stop_gradient(steps.action_values)


@register
class ActionAdvantage(Advantage):
    """Ψ_t = Q(s_t, a_t) - V(s_t), V(s) = E[Q(s, a)] under the policy, from a critic of actions."""

    critic = "action"

    def __call__(self, steps):
        return tf.stop_gradient(steps.action_values - steps.values)


_NAMED = {
    "total_return": TotalReturn,
    "reward_to_go": RewardToGo,
    "return_minus_baseline": ReturnMinusBaseline,
    "group_relative": GroupRelative,
    "td": TDResidual,
    "gae": GAE,
    "q": ActionValue,
    "advantage": ActionAdvantage,
}


def get(advantage):
    """The estimator of that name, or the object itself.

    Raises:
        ValueError: there is none.

    >>> get("gae").critic
    'state'
    """
    if isinstance(advantage, Advantage):
        return advantage
    if isinstance(advantage, str) and advantage in _NAMED:
        return _NAMED[advantage]()
    raise ValueError(
        f"advantage must be one of {', '.join(map(repr, _NAMED))}, or a keras_pg.advantages."
        f"Advantage such as NStep(5), received {advantage!r}."
    )
