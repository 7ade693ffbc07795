"""Group relative policy optimization (GRPO).

Paper: Shao et al., 2024, "DeepSeekMath", arXiv:2402.03300, section 4.1. For environments: an answer
is an episode, a token a step, and the question its first state.

One iteration, as `GRPO.train_step` carries it out on one whole episode in each of N environments,
of which each G in a row, a group, began in the same state:

    1. Evaluate the policy that collected, log π_old(a|s), and the reference policy.
    2. Each step of episode i has the advantage Â_i = (R_i - mean(R_group)) / std(R_group): how much
       better its return is than those of its group. Or another Ψ that needs no critic.
    3. For K epochs, in minibatches, ascend

           E[ min(r Â, clip(r, 1-ε, 1+ε') Â) ] - β KL(π ‖ π_ref) + c_e E[H(π)],   r = π / π_old

       (eq. 3), where the mean is first over the steps of an episode, then over episodes, or is
       another one of `normalization`.
    4. Merge the rollout into the running statistics of observations.
"""

import keras
import tensorflow as tf

from keras_pg import advantages, losses
from keras_pg.agents.ppo import PPO
from keras_pg.hyperparameters import Hyperparameter, check_count
from keras_pg.rollouts.minibatches import Minibatches, flatten_time


def step_weights(valid, normalization):
    """The weight of each step in the loss, of sum 1 but for "constant".

        "sequence": 1 / (N · length of its episode)     "token": 1 / (all steps)
        "constant": 1 / (N · T)

    Args:
        valid: bool [T, N], of one episode in each column.
        normalization: its name.

    Returns:
        float32 [T, N].

    References: "sequence" is GRPO's own mean, which makes a step of a long episode count less;
    "token" DAPO's (arXiv:2503.14476, eq. 8), "constant" Dr. GRPO's (arXiv:2503.20783).
    """
    weights = tf.cast(valid, tf.float32)
    steps, episodes = valid.shape
    if normalization == "sequence":
        lengths = tf.reduce_sum(weights, axis=0)
        return tf.math.divide_no_nan(weights, lengths * episodes)
    if normalization == "token":
        return tf.math.divide_no_nan(weights, tf.reduce_sum(weights))
    return weights / (steps * episodes)


@keras.saving.register_keras_serializable("keras_pg")
class GRPO(PPO):
    """Group relative policy optimization: PPO's surrogate with the group as the baseline.

    Episodes of a group begin from the same seed, so the environment must be an id, a factory, a
    native environment, or a `SyncVectorEnv` or `AsyncVectorEnv`. `num_envs` must be a multiple of
    `group_size`, and `num_steps` is the longest that an episode may be; tasks of one step,
    contextual bandits, have `num_steps=1`. With an environment whose dynamics are random, the same
    seed also makes them alike, as far as the actions are.

    Args:
        actor: see `PPO`. There is no critic.
        group_size: G, episodes that begin alike and are compared with each other.
        advantage: "group_relative", or `GroupRelative` with another `scale`; or any Ψ that needs no
            critic, as "reward_to_go", and sums of them. (`discount_weighting` is for those: the
            group's is discounted, if gamma is, from the episode's start already.)
        normalization: of the loss: "sequence", "token" or "constant", see `step_weights`.
        clip_ratio: ε, a number or a schedule.
        clip_ratio_high: ε' for ratios above 1; None for ε.
        reference, kl_coef, kl_estimator, kl_in, entropy_coef, target_kl, gamma, discount_weighting,
            normalize_observations, squash_actions, seed: see `PPO`. Returns are not discounted
            unless gamma is given. With kl_in="reward" the penalty is part of the returns that are
            compared, and of what they are divided by: in a group whose own returns are all equal
            it is all there is, however small kl_coef.
        update_epochs, num_minibatches: see `PPO`; a single gradient step by default, as in the
            paper.

    Metrics: those of `PPO` that need no critic, and `frac_zero_std`, the share of groups whose
    returns, before any penalty, were all equal. The loss says nothing of progress: with
    "group_relative" it is 0 in the mean before the first gradient step, whatever the policy.

    Raises:
        ValueError: a hyperparameter is out of range, `advantage` needs a critic, or num_envs is no
            multiple of group_size.

    Example:
    >>> import keras_pg
    >>> agent = keras_pg.GRPO(group_size=4, seed=0)
    >>> history = agent.fit("CartPole-v1", epochs=1, steps_per_epoch=1, num_steps=200, verbose=0)
    >>> sorted(history.history)[:3]
    ['approx_kl', 'clip_fraction', 'entropy']

    Reference: Shao et al., 2024, arXiv:2402.03300, algorithm 1.
    """

    clip_ratio_high = Hyperparameter(low_open=True, optional=True)
    group_size = 8  # until `__init__` sets it, for what that checks before
    whole_episodes = True
    default_num_steps = 1000
    row_metrics = ("loss", "policy_loss", "entropy", "approx_kl", "clip_fraction")
    tracked = (*row_metrics, "frac_zero_std", "n_updates")

    # What PPO has and GRPO has not.
    without = (
        *("critic", "gae_lambda", "normalize_advantages", "value_clip", "value_coef"),
        *("kl_penalty", "kl_penalty_target"),
    )

    def __init__(
        self,
        actor=None,
        *,
        group_size=8,
        advantage="group_relative",
        normalization="sequence",
        clip_ratio=0.2,
        clip_ratio_high=None,
        gamma=1.0,
        update_epochs=1,
        num_minibatches=1,
        **settings,
    ):
        for name in self.without:
            if name in settings:
                raise TypeError(f"GRPO has no argument {name!r}: its baseline is the group.")
        if advantages.get(advantage).critic is not None:
            raise ValueError(
                f"advantage={advantage!r} needs a critic, and GRPO has none: choose another, such "
                'as "group_relative", or another agent, such as PPO.'
            )
        super().__init__(
            actor,
            advantage=advantage,
            gamma=gamma,
            clip_ratio=clip_ratio,
            update_epochs=update_epochs,
            num_minibatches=num_minibatches,
            normalize_advantages=False,
            **settings,
        )
        self.group_size = check_count("group_size", group_size)
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2, received {group_size}.")
        if normalization not in ("sequence", "token", "constant"):
            raise ValueError(
                'normalization must be "sequence", "token" or "constant", '
                f"received {normalization!r}."
            )
        if clip_ratio is None and clip_ratio_high is not None:
            raise ValueError(
                f"clip_ratio=None clips nothing, and clip_ratio_high={clip_ratio_high!r} is a part "
                "of the clipping: give both or neither."
            )
        self.normalization = normalization
        self.clip_ratio_high = clip_ratio_high

    def train_step(self, rollout):
        """One policy iteration; the numbers are those of the module's pseudocode."""
        # 1. The policy that collected, and the reference.
        steps = flatten_time(rollout)
        old_policy = self.old_policy(steps)
        groups = tf.reshape(self.criticize(rollout).returns()[0], (-1, self.group_size))
        rollout = self.penalize_rewards(rollout, steps, *old_policy)
        evaluated = self.criticize(rollout)

        # 2. Advantages.
        advantage = tf.reshape(self.psi(evaluated), [-1])

        # 3. Gradient steps. A minibatch is a sample of steps, whose weights are those of the whole.
        minibatches = Minibatches(
            advantage.shape[0],
            seed=self.iteration_seed(),
            epochs=self.update_epochs,
            num_minibatches=self.num_minibatches,
        )
        weights = minibatches.split(self.num_minibatches * self.step_weights(rollout.valid))
        counted = losses.mean_weights(minibatches.split(steps.valid))
        zeros = tf.zeros_like(advantage)
        batch = (steps.observations, steps.actions, *old_policy, zeros, zeros, advantage)
        metrics = self._ascend(
            minibatches.count, lambda i: minibatches(i, batch, split=(weights, counted))
        )

        # 4. Running statistics, frozen until here.
        self.learn_statistics(rollout, evaluated)
        equal = tf.logical_not(losses.varies(groups, tf.ones_like(groups, tf.bool)))
        metrics["frac_zero_std"] = tf.reduce_mean(tf.cast(equal, tf.float32))
        return self.log(rollout, metrics)

    def step_weights(self, valid):
        return tf.reshape(step_weights(valid, self.normalization), [-1])

    def get_config(self):
        config = super().get_config()
        for name in self.without:
            config.pop(name)
        return {
            **config,
            "group_size": self.group_size,
            "normalization": self.normalization,
            "clip_ratio_high": GRPO.clip_ratio_high.config(self),
        }
