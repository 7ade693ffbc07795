"""Runs Stable-Baselines3's PPO, or SBX's, on CartPole-v1; prints one JSON line of measurements.

    python stable_baselines3_native.py stable_baselines3 --num-envs 4 --num-steps 128
    python stable_baselines3_native.py sbx --num-envs 4 --num-steps 128

Both step Gymnasium's environments one after the other, as they do by default. What the first
iteration takes longer than the mean of the others is counted as compiling.
"""

import importlib
import time

import native_protocol
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env


class Clock(BaseCallback):
    """When each rollout began."""

    def __init__(self):
        super().__init__()
        self.starts = []

    def _on_rollout_start(self):
        self.starts.append(time.perf_counter())

    def _on_step(self):
        return True


def main():
    arguments = native_protocol.parse_arguments(__doc__, "library")
    PPO = importlib.import_module(arguments.library).PPO
    threads = {}
    if arguments.library == "stable_baselines3":
        import torch

        torch.set_num_threads(1)
        threads = {"device": "cpu"}
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", arguments.num_envs, seed=arguments.seed),
        learning_rate=lambda remaining: 2.5e-4 * remaining,
        n_steps=arguments.num_steps,
        batch_size=arguments.num_envs * arguments.num_steps // 4,
        n_epochs=4,
        gamma=0.99,
        gae_lambda=0.95,
        clip_range=0.2,
        ent_coef=0.01,
        vf_coef=0.25,
        max_grad_norm=0.5,
        seed=arguments.seed,
        **threads,
    )
    clock = Clock()
    model.learn(arguments.total_timesteps, callback=clock)
    end = time.perf_counter()
    starts = [*clock.starts, end]
    iteration = (end - starts[1]) / (len(starts) - 2)
    episodes = [episode["r"] for episode in model.ep_info_buffer]
    packages = {
        "stable_baselines3": ("stable-baselines3", "torch", "gymnasium", "numpy"),
        "sbx": ("sbx-rl", "stable-baselines3", "jax", "jaxlib", "gymnasium", "numpy"),
    }
    native_protocol.print_report(
        {"stable_baselines3": "Stable-Baselines3", "sbx": "SBX"}[arguments.library],
        packages[arguments.library],
        arguments,
        env_steps=model.num_timesteps,
        compile_seconds=starts[1] - starts[0] - iteration,
        run_seconds=iteration * (len(starts) - 1),
        training_return=float(sum(episodes) / len(episodes)),
    )


if __name__ == "__main__":
    main()
