"""Trust region policy optimization (TRPO).

Paper: Schulman et al., 2015, "Trust Region Policy Optimization", arXiv:1502.05477.

One iteration is that of `NPG`, but for its fourth step, a line search:

    4. Try the steps β x, αβ x, α²β x, … until one improves the surrogate E[r Ψ], r = π / π_old, and
       has a mean KL(π_old ‖ π) of at most ε. If none does, the actor stays as it was.
"""

import keras
import tensorflow as tf

from keras_pg import trust_region
from keras_pg.agents.npg import NPG
from keras_pg.hyperparameters import check_count, check_range


@keras.saving.register_keras_serializable("keras_pg")
class TRPO(NPG):
    """Trust region policy optimization: the natural policy gradient with a line search.

    Args:
        actor, critic, and all settings of `NPG`, where `max_kl` now is a bound that is kept.
        backtrack_ratio: α in (0, 1), by which a step that was not accepted is shortened.
        backtrack_iters: how many steps are tried.

    Metrics: those of `NPG`, and `line_search_steps`, how many steps were tried;
    `line_search_success`, the share of iterations in which one was accepted.

    Raises:
        ValueError: a hyperparameter is out of range.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.TRPO(seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=64, verbose=0)
    >>> 0 < history.history["kl"][0] <= 0.01
    True

    Reference: Schulman et al., 2015, arXiv:1502.05477, eq. 14 and appendix C.
    """

    tracked = (*NPG.tracked, "line_search_steps", "line_search_success")

    def __init__(
        self, actor=None, critic=None, *, backtrack_ratio=0.8, backtrack_iters=10, **settings
    ):
        super().__init__(actor, critic, **settings)
        self.backtrack_ratio = check_range(
            "backtrack_ratio", backtrack_ratio, 0.0, 1.0, low_open=True, high_open=True
        )
        self.backtrack_iters = check_count("backtrack_iters", backtrack_iters)

    def move(self, variables, step, surrogate_and_kl):
        """Line search along the step; returns metrics."""
        before, _ = surrogate_and_kl()

        def acceptable():
            surrogate, kl = surrogate_and_kl()
            return (surrogate > before) & (kl <= self.max_kl)

        success, tried = trust_region.line_search(
            variables, step, acceptable, self.backtrack_ratio, self.backtrack_iters
        )
        surrogate, kl = surrogate_and_kl()
        return {
            "policy_loss": -surrogate,
            "kl": kl,
            "line_search_steps": tf.cast(tried, tf.float32),
            "line_search_success": tf.cast(success, tf.float32),
        }

    def get_config(self):
        return {
            **super().get_config(),
            "backtrack_ratio": self.backtrack_ratio,
            "backtrack_iters": self.backtrack_iters,
        }
