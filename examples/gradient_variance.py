"""How noisy is the policy gradient? Every Ψ at one policy and one critic, as a picture."""

from matplotlib.figure import Figure

import keras_pg
from keras_pg.advantages import GAE, ActionAdvantage, GroupRelative, NStep, ReturnMinusBaseline
from keras_pg.diagnostics import gradient_statistics

# A critic of actions knows Q(s, a), and V(s) as its mean under the policy: enough for every Ψ.
agent = keras_pg.A2C(advantage="advantage", gae_lambda=0.95, seed=0)
agent.fit("CartPole-v1", num_steps=32, total_timesteps=40_000, verbose=0)

estimators = {
    "total return": "total_return",
    "reward to go": "reward_to_go",
    "return - mean": ReturnMinusBaseline("mean"),
    "return - V": ReturnMinusBaseline("value"),
    "GAE(0.95)": GAE(0.95),
    "5 steps": NStep(5),
    "TD": "td",
    "Q": "q",
    "Q - V": "advantage",
    "half GAE, half Q - V": 0.5 * GAE(0.95) + 0.5 * ActionAdvantage(),
}
# The same policy as one that plays the 4 episodes of a rollout from one start.
grouped = keras_pg.GRPO(agent.actor, group_size=4, normalization="token", gamma=agent.gamma)
estimators["return - group's mean"] = GroupRelative(scale=None)

variances = {}
for name, advantage in estimators.items():
    found = gradient_statistics(
        grouped if isinstance(advantage, GroupRelative) else agent,
        "CartPole-v1",
        advantage=advantage,
        rollouts=64,
        num_envs=4,
        num_steps=200,
    )
    variances[name] = found.variance
    print(
        f"{name:20} variance {found.variance:10.4g}   signal to noise {found.signal_to_noise:.3g}"
    )

figure = Figure(figsize=(7, 3.5), dpi=120, layout="constrained")
axes = figure.subplots()
axes.plot(list(variances.values()), list(variances), "o", color="#4c78a8")
axes.invert_yaxis()
axes.grid(alpha=0.3)
axes.set(xscale="log", xlabel="variance of the gradient of one rollout (800 steps of CartPole-v1)")
axes.spines[["top", "right"]].set_visible(False)
figure.savefig("gradient_variance.png")
