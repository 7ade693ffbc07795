"""Runs Stable-Baselines3's PPO on the CPU and prints one JSON line of measurements.

The throughput benchmark's peer. Collecting and updating are timed by wrapping `collect_rollouts`
and `train`; everything else is the library's own code and defaults ("MlpPolicy": separate tanh
networks of 64-64, orthogonal initialisation, Adam with epsilon 1e-5, `DummyVecEnv`).

Solve mode evaluates with the library's `EvalCallback`, inside a rollout; that time is counted under
"evaluate_seconds", not under "collect_seconds".

Example:
    python stable_baselines3_ppo.py --total-timesteps 100000 --seed 0
"""

import protocol
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule


class TimedPPO(PPO):
    """PPO that times its two phases with `stopwatch`, a `protocol.Stopwatch`."""

    stopwatch = None

    def collect_rollouts(self, *args, **kwargs):
        with self.stopwatch.measure("collect"):
            return super().collect_rollouts(*args, **kwargs)

    def train(self):
        with self.stopwatch.measure("update"):
            super().train()
        self.stopwatch.end_iteration(self.num_timesteps)


class TimedEvalCallback(EvalCallback):
    """`EvalCallback` that times itself with its model's stopwatch."""

    def _on_step(self):
        with self.model.stopwatch.measure("evaluate"):
            return super()._on_step()


def schedule(value, arguments):
    """Returns `value` as a constant or as rl-zoo's `lin_<value>`: linear decay to 0."""
    return value if arguments.constant_schedules else LinearSchedule(value, 0.0, 1.0)


def evaluation_callback(arguments):
    """Returns the callback that evaluates at intervals and stops once the task is solved."""
    return TimedEvalCallback(
        make_vec_env(arguments.env, protocol.EVALUATION_EPISODES, seed=arguments.seed + 1_000),
        callback_on_new_best=StopTrainingOnRewardThreshold(protocol.SOLVED_RETURN, verbose=0),
        n_eval_episodes=protocol.EVALUATION_EPISODES,
        eval_freq=protocol.EVALUATION_INTERVAL // arguments.num_envs,
        deterministic=True,
        verbose=0,
    )


def main():
    arguments = protocol.parse_arguments(__doc__)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = TimedPPO(
        "MlpPolicy",
        make_vec_env(arguments.env, arguments.num_envs, seed=arguments.seed),
        learning_rate=schedule(arguments.learning_rate, arguments),
        n_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        n_epochs=arguments.update_epochs,
        gamma=arguments.gamma,
        gae_lambda=arguments.gae_lambda,
        clip_range=schedule(arguments.clip_ratio, arguments),
        ent_coef=arguments.entropy_coef,
        vf_coef=arguments.value_coef,
        max_grad_norm=arguments.max_grad_norm,
        seed=arguments.seed,
        device="cpu",
    )
    callback = evaluation_callback(arguments) if arguments.mode == "solve" else None
    model.stopwatch = protocol.Stopwatch()
    model.learn(arguments.total_timesteps, callback=callback)
    protocol.print_report(
        library="Stable-Baselines3",
        packages=("stable-baselines3", "torch", "gymnasium", "numpy"),
        arguments=arguments,
        stopwatch=model.stopwatch,
        env_steps=model.num_timesteps,
        evaluated_return=callback.last_mean_reward if callback else None,
    )


if __name__ == "__main__":
    main()
