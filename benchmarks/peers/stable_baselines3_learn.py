"""Trains Stable-Baselines3's PPO with a settings file; prints its curve as one JSON line.

python stable_baselines3_learn.py ../settings/CartPole-v1.json 0
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize


class Curve(BaseCallback):
    """Mean return of the episodes that ended since the last point, about 20 points in all."""

    def __init__(self, interval):
        super().__init__()
        self.interval, self.points, self.returns = interval, [], []

    def _on_step(self):
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps >= (len(self.points) + 1) * self.interval:
            mean = float(np.mean(self.returns)) if self.returns else float("nan")
            self.points.append((self.num_timesteps, mean))
            self.returns = []
        return True


def main():
    settings, seed = json.loads(pathlib.Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)  # several runs may be side by side; see throughput.py for its speed

    def schedule(value):
        return LinearSchedule(value, 0.0, 1.0) if settings["linear_schedules"] else value

    env = make_vec_env(settings["env"], settings["num_envs"], seed=seed)
    test_env = make_vec_env(settings["env"], 8, seed=10_000 + seed)
    if settings["normalize"]:
        env = VecNormalize(env, gamma=settings["gamma"])
        test_env = VecNormalize(test_env, training=False, norm_reward=False)
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=schedule(settings["learning_rate"]),
        n_steps=settings["num_steps"],
        batch_size=settings["batch_size"],
        n_epochs=settings["update_epochs"],
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_range=schedule(settings["clip_ratio"]),
        ent_coef=settings["entropy_coef"],
        vf_coef=settings["value_coef"],
        max_grad_norm=settings["max_grad_norm"],
        seed=seed,
        device="cpu",
    )
    curve = Curve(settings["total_timesteps"] / 20)
    start = time.perf_counter()
    model.learn(settings["total_timesteps"], callback=curve)
    seconds = time.perf_counter() - start
    if settings["normalize"]:
        test_env.obs_rms = env.obs_rms
    evaluated_return, _ = evaluate_policy(model, test_env, n_eval_episodes=100)
    report = {
        "library": "Stable-Baselines3",
        "seed": seed,
        "env_steps": model.num_timesteps,
        "curve": curve.points,
        "evaluated_return": float(evaluated_return),
        "seconds": seconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
