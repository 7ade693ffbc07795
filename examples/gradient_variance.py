"""How noisy is the policy gradient? Every Ψ at one policy and one critic, as a picture."""

from matplotlib.figure import Figure

import keras_pg
from keras_pg.advantages import GAE, ActionAdvantage, GroupRelative, NStep, ReturnMinusBaseline
from keras_pg.diagnostics import gradient_statistics

# A critic of actions knows Q(s, a), and V(s) as its mean under the policy: enough for every Ψ.
agent = keras_pg.A2C(advantage="advantage", gae_lambda=0.95, seed=0)
agent.fit("CartPole-v1", num_steps=32, total_timesteps=40_000, verbose=0)

# The same policy as one that plays the 4 episodes of a rollout from one start.
grouped = keras_pg.GRPO(agent.actor, group_size=4, normalization="token", gamma=agent.gamma)

# Rewards of the rollout, less a baseline: the critic's errors do not change what is expected, but
# for "return - V" beyond the end of the rollout.
of_rewards = {
    "total return": "total_return",
    "reward to go": "reward_to_go",
    "return - mean": ReturnMinusBaseline("mean"),
    "return - group's mean": GroupRelative(scale=None),
    "return - V": ReturnMinusBaseline("value"),
}
# The critic's word for what is still to come: where it is wrong, another gradient is expected.
of_critic = {
    "GAE(0.95)": GAE(0.95),
    "5 steps": NStep(5),
    "TD": "td",
    "Q": "q",
    "Q - V": "advantage",
    "half GAE, half Q - V": 0.5 * GAE(0.95) + 0.5 * ActionAdvantage(),
}


def measure(name, advantage):
    """Statistics of one estimator, printed."""
    found = gradient_statistics(
        grouped if isinstance(advantage, GroupRelative) else agent,
        "CartPole-v1",
        advantage=advantage,
        rollouts=64,
        num_envs=4,
        num_steps=200,
    )
    low, high = found.variance_interval
    print(
        f"{name:21} variance {found.variance:8.3g} ({low:.3g} to {high:.3g})"
        f"   signal to noise {found.signal_to_noise:.3g}"
    )
    return found


kinds = (
    ("rewards of the rollout, less a baseline", of_rewards, "#1f5fa8", "o"),
    (
        "the critic in place of later rewards:\nbiased where the critic is wrong",
        of_critic,
        "#d95f02",
        "D",
    ),
)
figure = Figure(figsize=(8.4, 4.6), dpi=200, layout="constrained")
axes = figure.subplots()
for label, estimators, color, marker in kinds:
    for i, (name, advantage) in enumerate(estimators.items()):
        found = measure(name, advantage)
        low, high = found.variance_interval
        axes.errorbar(
            found.variance,
            name,
            xerr=[[found.variance - low], [high - found.variance]],
            fmt=marker,
            color=color,
            capsize=4,
            label=None if i else label,
        )
        if name == "TD":
            axes.annotate(
                "least variance, but biased by the critic's errors",
                (found.variance, name),
                xytext=(34, 0),
                textcoords="offset points",
                va="center",
                backgroundcolor="white",
                color=color,
                size=9,
            )
axes.invert_yaxis()
axes.grid(alpha=0.3)
axes.set(
    xscale="log",
    xlabel="variance of the gradient of one rollout (800 steps of CartPole-v1)\n"
    "Whiskers: 95% confidence intervals from 64 rollouts, by the jackknife",
)
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)
figure.savefig("gradient_variance.png")
