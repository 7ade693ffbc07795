"""Makes the updates that `sb3_contrib_updates.py` wrote, with keras_pg; prints how they differ.

    python keras_pg_updates.py ../settings/algorithms/trpo_zoo.json Swimmer-v4 OUTPUT.npz

From the same weights and the same rollout: values, advantages, the policy's step and the critic's
error after its regression, whose minibatches are each library's own.
"""

import json
import pathlib
import sys

import gymnasium
import keras
import numpy as np
import tensorflow as tf

import keras_pg
from keras_pg import Rollout

WHEN = "before", "after"
POLICY = "mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"
VALUE = "mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net"


def main():
    settings, env, path = sys.argv[1:]
    settings = json.loads(pathlib.Path(settings).read_text())["environments"][env]
    with gymnasium.make(env) as made:
        action_space = made.action_space
    seen = np.load(path)
    iterations = sorted({int(name.partition("/")[0]) for name in seen.files})
    report = [compare(seen, i, settings, action_space) for i in iterations]
    print(json.dumps({"env": env, "iterations": report}))


def compare(seen, i, settings, action_space):
    """The differences of iteration i."""

    def of(name):
        return seen[f"{i}/{name}"]

    observations, rewards = of("observations"), of("rewards")
    # Normalized and scaled by sb3-contrib already.
    arguments = {**settings["agent"], "normalize_rewards": False, "normalize_observations": False}
    agent = keras_pg.TRPO(seed=0, **arguments)
    space = gymnasium.spaces.Box(-np.inf, np.inf, observations.shape[2:])
    agent.build(space, action_space)
    optimizer = dict(settings["optimizer"])
    agent.compile(getattr(keras.optimizers, optimizer.pop("name"))(**optimizer))
    load(agent.actor, arrays(of, "before", *POLICY))
    load(agent.critic, arrays(of, "before", *VALUE))
    agent.actor.log_std.assign(of("before/log_std"))

    # Its rewards hold the value of a state where a time limit cut: an end like any other then.
    ended = np.concatenate([of("episode_starts")[1:], of("last_starts")[None]]).astype(bool)
    following = np.concatenate([observations[1:], of("last_observations")[None]])
    nothing = np.zeros_like(rewards)
    rollout = Rollout(
        observations=observations,
        actions=of("actions").astype(np.float32),
        rewards=rewards,
        terminated=ended,
        truncated=nothing > 0,
        valid=nothing == 0,
        timesteps=nothing.astype(np.int32),
        next_observations=following,
        episode_returns=nothing,
        discounted_returns=nothing,
    )
    rollout = tf.nest.map_structure(tf.constant, rollout)
    evaluated = agent.criticize(rollout)
    advantages, targets = agent.psi(evaluated).numpy(), evaluated.targets().numpy()
    differences = {
        "largest advantage": np.abs(advantages).max(),
        "values": np.abs(evaluated.values - of("values")).max(),
        "advantages": np.abs(advantages - of("advantages")).max(),
        "value targets": np.abs(targets - of("returns")).max(),
    }

    before, after = (flat([*arrays(of, w, *POLICY), of(f"{w}/log_std")]) for w in WHEN)
    logs = agent.train_step(rollout)
    layers = (*agent.actor.encoder.layers, agent.actor.head)
    ours = [w for layer in layers for w in layer.get_weights()]
    step, its = flat([*ours, agent.actor.log_std.numpy()]) - before, after - before

    def critics_error():
        rows = observations.reshape(-1, *observations.shape[2:])
        return np.mean((agent.critic(rows) - of("returns").ravel()) ** 2)

    error = critics_error()
    load(agent.critic, arrays(of, "after", *VALUE))
    differences |= {
        "length of the policy's step": np.linalg.norm(step),
        "of sb3-contrib's": np.linalg.norm(its),
        "of the difference": np.linalg.norm(step - its),
        "line search steps": float(logs["line_search_steps"]),
        "critic's error after": error,
        "of sb3-contrib's critic": critics_error(),
    }
    return {"iteration": i, **{name: float(value) for name, value in differences.items()}}


def arrays(of, when, *names):
    """Kernels and biases of sb3-contrib's layers, as Keras has them."""
    pairs = ((of(f"{when}/{name}.weight").T, of(f"{when}/{name}.bias")) for name in names)
    return [array for pair in pairs for array in pair]


def load(network, weights):
    """Gives the encoder's layers and the head these weights."""
    for i, layer in enumerate((*network.encoder.layers, network.head)):
        layer.set_weights(weights[2 * i : 2 * i + 2])


def flat(weights):
    return np.concatenate([array.ravel() for array in weights])


if __name__ == "__main__":
    main()
