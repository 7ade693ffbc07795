"""Ψ_t side by side: estimators by name, a sum of two, a running-mean baseline, one of your own."""

import keras
import tensorflow as tf

import keras_pg
from keras_pg.advantages import GAE, Advantage, Evaluated, NStep, ReturnMinusBaseline


@keras.saving.register_keras_serializable("my_project")
class ClippedGAE(Advantage):
    """GAE that no single transition can dominate: Ψ_t = clip(Â_t, ±limit)."""

    critic = "state"

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, steps):
        return tf.clip_by_value(steps.gae(steps.gae_lambda), -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}


def column(*numbers):
    """Numbers of one environment, time-major [T, 1]."""
    return tf.constant(numbers)[:, None]


# Three steps: the reward comes last, in a terminal state. The critic says 0.5 everywhere.
never = column(False, False, False)
episode = Evaluated(
    observations=tf.zeros((3, 1, 4)), rewards=column(0.0, 0.0, 1.0), values=column(0.5, 0.5, 0.5),
    next_values=column(0.5, 0.5, 0.5), action_values=None, terminated=column(False, False, True),
    truncated=never, valid=~never, timesteps=column(0, 1, 2), gamma=0.9, gae_lambda=0.95,
)  # fmt: skip
mixture = 0.5 * GAE(0.9) + 0.5 * NStep(3)
own = ClippedGAE(limit=0.2)
named = ("total_return", "reward_to_go", "return_minus_baseline", "td", "gae")
for name, estimator in {
    **{name: keras_pg.advantages.get(name) for name in named},
    "0.5 GAE(0.9) + 0.5 NStep(3)": mixture,
    "ClippedGAE(0.2)": own,
}.items():
    print(f"{name:28}", [round(float(x), 3) for x in estimator(episode)[:, 0]])

mean = ReturnMinusBaseline("mean")  # of all returns seen so far, saved with the agent
for name, agent, num_steps in (
    ("REINFORCE, running mean", keras_pg.REINFORCE(advantage=mean, seed=0), 500),
    ("A2C, mixture", keras_pg.A2C(advantage=mixture, seed=0), 16),
    ("PPO, ClippedGAE", keras_pg.PPO(advantage=own, normalize_advantages=False, seed=0), 128),
):
    agent.fit("CartPole-v1", num_steps=num_steps, total_timesteps=30_000, verbose=0)
    print(f"{name:28}", agent.evaluate("CartPole-v1", verbose=0))

agent.save("own_advantage.keras")
print("loaded:", keras.models.load_model("own_advantage.keras").advantage)
