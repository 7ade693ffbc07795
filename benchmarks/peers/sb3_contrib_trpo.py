"""Times one update of sb3-contrib's TRPO on the CPU and prints one JSON line.

The update is `TRPO.train()` on a rollout buffer that is filled once; training does not consume it.
"actor" is with `n_critic_updates=0`, "whole" with the critic's regression too. The critic's values
and GAE belong to collecting in this library and are in neither.

Example:
    python sb3_contrib_trpo.py --seed 0 --threads 1
"""

import copy
import warnings

import gymnasium
import numpy as np
import torch
import trpo_protocol as protocol
from sb3_contrib import TRPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv


class Spaces(gymnasium.Env):
    """An environment that has spaces and is never stepped."""

    def __init__(self, arguments):
        self.observation_space, self.action_space = protocol.make_spaces(arguments)


def make_model(arguments):
    # The library takes the mean of the KL over action dimensions, where keras_pg and the paper have
    # the sum. Its max KL must be ours / 6 to bound the same region. Its Fisher matrix is ours / 6
    # for the same reason, and with damping / 6 both solve the same system.
    return TRPO(
        "MlpPolicy",
        DummyVecEnv([lambda: Spaces(arguments)] * arguments.num_envs),
        learning_rate=arguments.learning_rate,
        n_steps=arguments.num_steps,
        batch_size=arguments.batch_size,
        gamma=arguments.gamma,
        gae_lambda=arguments.gae_lambda,
        cg_max_steps=arguments.cg_iters,
        cg_damping=arguments.cg_damping / arguments.action_size,
        line_search_shrinking_factor=arguments.backtrack_ratio,
        line_search_max_iter=arguments.backtrack_iters,
        target_kl=arguments.max_kl / arguments.action_size,
        sub_sampling_factor=1,
        normalize_advantage=True,
        policy_kwargs={"optimizer_kwargs": {"eps": arguments.adam_epsilon}},
        seed=arguments.seed,
        device="cpu",
    )


@torch.no_grad()
def fill(model, arguments):
    """What `collect_rollouts` leaves in the buffer."""
    data = protocol.synthetic_rollout(arguments)
    buffer, policy = model.rollout_buffer, model.policy
    starts = np.ones(arguments.num_envs, bool)
    for t in range(arguments.num_steps):
        observations, actions = data["observations"][t], data["actions"][t]
        values, log_probs, _ = policy.evaluate_actions(
            torch.as_tensor(observations), torch.as_tensor(actions)
        )
        buffer.add(observations, actions, data["rewards"][t], starts, values, log_probs)
        starts = data["terminated"][t]
    last_values = policy.predict_values(torch.as_tensor(data["observations"][-1]))
    buffer.compute_returns_and_advantage(last_values, starts)


def measure(model, n_critic_updates, arguments):
    model.n_critic_updates = n_critic_updates
    policy = model.policy
    initial = copy.deepcopy(policy.state_dict())
    get_distribution, evaluations = type(policy).get_distribution, 0

    def counting_get_distribution(observations):
        nonlocal evaluations
        evaluations += 1
        return get_distribution(policy, observations)

    policy.get_distribution = counting_get_distribution

    def update():
        nonlocal evaluations
        evaluations = 0
        model.train()
        logs = model.logger.name_to_value
        return {
            # Two are made before the line search.
            "line_search_steps": evaluations - 2,
            "line_search_success": float(logs["train/is_line_search_success"]),
            "kl": arguments.action_size * float(logs["train/kl_divergence_loss"]),
        }

    def restore():
        policy.load_state_dict(initial)

    result = protocol.measure_updates(update, restore, arguments)
    restore()
    return result


def main():
    arguments = protocol.parse_arguments(__doc__)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    # Without critic updates the library logs the mean of no losses.
    warnings.filterwarnings("ignore", "Mean of empty slice")
    warnings.filterwarnings("ignore", "invalid value encountered")
    model = make_model(arguments)
    model.set_logger(Logger(None, []))
    fill(model, arguments)
    protocol.print_report(
        library="sb3-contrib",
        packages=("sb3-contrib", "stable-baselines3", "torch", "gymnasium", "numpy"),
        arguments=arguments,
        threads=torch.get_num_threads(),
        actor=measure(model, 0, arguments),
        whole=measure(model, arguments.critic_epochs, arguments),
    )


if __name__ == "__main__":
    main()
