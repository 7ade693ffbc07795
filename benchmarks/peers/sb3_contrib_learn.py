"""Trains sb3-contrib's TRPO with rl-zoo's settings; prints the result as one JSON line.

    python sb3_contrib_learn.py ../settings/algorithms/trpo_zoo.json LunarLander-v3 0

Its KL divergence is a mean over the actions' dimensions, where keras_pg's is their sum, so `max_kl`
and `cg_damping` are divided by their number. Observations and rewards are normalized where the
settings normalize rewards.
"""

import json
import pathlib
import sys
import time

import numpy as np
import torch
from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize


def make_model(path, env, seed):
    """(The untrained model, its settings in the file)."""
    settings = json.loads(pathlib.Path(path).read_text())["environments"][env]
    fit, agent = settings["fit"], settings["agent"]
    torch.set_num_threads(1)
    training = make_vec_env(env, fit["num_envs"], seed=seed)
    if agent.get("normalize_rewards"):
        training = VecNormalize(training, gamma=agent["gamma"])
    dimensions = int(np.prod(training.action_space.shape))  # 1 of discrete actions
    held_steps = agent.get("actor", {}).get("state_dependent_noise")
    model = TRPO(
        "MlpPolicy",
        training,
        n_steps=fit["num_steps"],
        batch_size=fit["num_envs"] * fit["num_steps"] // agent["num_minibatches"],
        gamma=agent["gamma"],
        gae_lambda=agent["gae_lambda"],
        learning_rate=settings["optimizer"]["learning_rate"],
        n_critic_updates=agent["critic_epochs"],
        cg_max_steps=agent["cg_iters"],
        cg_damping=agent["cg_damping"] / dimensions,
        target_kl=agent.get("max_kl", 0.01) / dimensions,
        use_sde=held_steps is not None,
        sde_sample_freq=held_steps or -1,
        seed=seed,
        device="cpu",
    )
    return model, settings


def main():
    env, seed = sys.argv[2], int(sys.argv[3])
    model, settings = make_model(sys.argv[1], env, seed)
    agent, training = settings["agent"], model.get_env()
    start = time.perf_counter()
    model.learn(settings["fit"]["total_timesteps"])
    seconds = time.perf_counter() - start
    evaluation = make_vec_env(env, 8, seed=seed + 10_000)
    if agent.get("normalize_rewards"):
        evaluation = VecNormalize(evaluation, training=False, norm_reward=False)
        evaluation.obs_rms = training.obs_rms
    deterministic, _ = evaluate_policy(model, evaluation, 100)
    sampled, _ = evaluate_policy(model, evaluation, 100, deterministic=False)
    report = {
        "library": "sb3-contrib",
        "seed": seed,
        "env_steps": model.num_timesteps,
        "evaluated_return": float(deterministic),
        "evaluated_return_of_samples": float(sampled),
        "training_return": float(np.mean([e["r"] for e in model.ep_info_buffer])),
        "seconds": seconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
