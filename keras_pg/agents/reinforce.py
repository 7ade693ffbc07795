"""REINFORCE, with and without a baseline.

Paper: Williams, 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning".

One iteration is that of `A2C` with Monte-Carlo returns:

    1. Play one whole episode in each of the N environments.
    2. Ψ_t = G_t - b(s_t), the return from step t on less a baseline: V(s_t), a mean, or none.
    3. Take one gradient step up the mean over episodes of

           Σ_t [ Ψ_t log π(a_t|s_t) - c_v (V(s_t) - G_t)² + c_e H(π(·|s_t)) ]

       (a sum over the steps of an episode: their mean would make a long episode count less).
"""

import keras
import tensorflow as tf

from keras_pg.agents.a2c import A2C
from keras_pg.hyperparameters import check_flag


@keras.saving.register_keras_serializable("keras_pg")
class REINFORCE(A2C):
    """REINFORCE: one gradient step on the Monte-Carlo policy gradient of whole episodes.

    Args:
        actor, critic: see `A2C`; without a learned baseline there is no critic.
        advantage: "return_minus_baseline" for a learned V(s); "reward_to_go" or "total_return" for
            none; `ReturnMinusBaseline("mean")` or of a function; or any other Ψ.
        whole_episodes: play each environment for one episode, of at most `num_steps` steps, at
            which it is truncated. Otherwise rollouts are of exactly `num_steps` steps, as those of
            other agents; the return of an episode that is cut goes on with V where Ψ has a
            critic, and is cut with the episode where it has none, which is a bias.
        gamma, gae_lambda, discount_weighting, entropy_coef, value_coef, normalize_advantages,
            normalize_observations, normalize_rewards, squash_actions, seed: see `A2C`.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.REINFORCE(advantage="reward_to_go", seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=500, verbose=0)
    >>> agent.critic is None
    True

    Reference: Williams, 1992, Machine Learning 8, section 3.
    """

    default_num_steps = 1000

    def __init__(
        self,
        actor=None,
        critic=None,
        *,
        advantage="return_minus_baseline",
        whole_episodes=True,
        **settings,
    ):
        super().__init__(actor, critic, advantage=advantage, **settings)
        self.whole_episodes = check_flag("whole_episodes", whole_episodes)

    def default_optimizer(self):
        # Not clipped: under one global norm a critic's squared errors, summed over an episode,
        # would leave next to nothing of the policy's gradient. Adam sees no scale.
        return keras.optimizers.Adam(1e-3)

    def step_weights(self, valid):
        """1 / N for each step of N whole episodes: the mean over episodes of sums over steps."""
        if not self.whole_episodes:
            return super().step_weights(valid)
        return tf.reshape(tf.cast(valid, tf.float32), [-1]) / valid.shape[1]

    def get_config(self):
        return {**super().get_config(), "whole_episodes": self.whole_episodes}
