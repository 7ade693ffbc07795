"""Plays Gymnasium episodes with a served policy.

    python play.py CartPole-v1 http://127.0.0.1:8501 cartpole --episodes 20
    python play.py CartPole-v1 127.0.0.1:8500 cartpole --label stable

Needs Gymnasium, and what rest_client.py or grpc_client.py needs.
"""

import argparse

import gymnasium
import numpy as np


def play(policy, env, episodes, seed=0):
    """The returns of episodes; the first is reset with `seed`, each later one with one more."""
    returns = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        total, ended = 0.0, False
        while not ended:
            action = policy(_batch(observation))[0].astype(env.action_space.dtype)
            observation, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    return returns


def _batch(observation):
    """A batch of one; with an action mask it is a dictionary of such."""
    if isinstance(observation, dict):
        return {name: np.asarray(array)[None] for name, array in observation.items()}
    return np.asarray(observation)[None]


def dtype_of(space):
    """Of the space's observations; with an action mask it is a dictionary of such."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: part.dtype.name for name, part in space.items()}
    return space.dtype.name


def connect(address, name, label=None, dtype="float32"):
    """The policy over REST if the address is a URL, and over gRPC if not."""
    if address.startswith("http"):
        from rest_client import RestPolicy

        return RestPolicy(address, name, label)
    from grpc_client import GrpcPolicy

    return GrpcPolicy(address, name, label, dtype)


def main(arguments=None):
    """Prints the returns and their mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="environment id")
    parser.add_argument("address", help="http://HOST:8501, or HOST:8500 for gRPC")
    parser.add_argument("name", help="of the model")
    parser.add_argument("--label")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    env = gymnasium.make(options.env)
    dtype = dtype_of(env.observation_space)
    policy = connect(options.address, options.name, options.label, dtype)
    returns = play(policy, env, options.episodes, options.seed)
    print(f"{options.env}: {np.round(returns, 2).tolist()}, mean {np.mean(returns):.2f}")


if __name__ == "__main__":
    main()
