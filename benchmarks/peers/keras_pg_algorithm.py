"""Trains one of keras_pg's agents with a settings file; prints its curve as one JSON line.

python keras_pg_algorithm.py ../settings/algorithms/trpo.json CartPole-v1 0

A value [a, b] in the settings falls linearly from a to b over the gradient steps of training.
`max_kl` counts iterations, and so gets only one part in `num_minibatches` of the way.
"""

import json
import math
import pathlib
import sys
import time

import bandit  # noqa: F401  registers its environment
import gymnasium
import keras
from protocol import versions

import keras_pg

EPOCHS = 25


def main():
    algorithm = json.loads(pathlib.Path(sys.argv[1]).read_text())
    env, seed = sys.argv[2], int(sys.argv[3])
    settings = algorithm["environments"][env]
    fit, arguments = dict(settings["fit"]), dict(settings["agent"])
    batch_size = fit["num_envs"] * fit["num_steps"]
    iterations = math.ceil(fit["total_timesteps"] / batch_size)
    whole_episodes = algorithm["agent"] in ("REINFORCE", "GRPO")
    if not whole_episodes:
        divisors = [n for n in range(1, iterations + 1) if iterations % n == 0]
        fit["epochs"] = min(divisors, key=lambda n: abs(math.log(n / EPOCHS)))
        fit["steps_per_epoch"] = iterations // fit["epochs"]
        del fit["total_timesteps"]
    updates = iterations * arguments.get("update_epochs", 1) * arguments.get("num_minibatches", 1)

    def value(setting):
        if not isinstance(setting, list):
            return setting
        return keras.optimizers.schedules.PolynomialDecay(setting[0], updates, setting[1])

    actor = arguments.pop("actor", None)
    if actor is not None:
        with gymnasium.make(env) as one:
            spaces = one.observation_space, one.action_space
        actor = keras_pg.Actor(*spaces, **actor, seed=seed)
    agent = getattr(keras_pg, algorithm["agent"])(
        actor, **{name: value(setting) for name, setting in arguments.items()}, seed=seed
    )
    optimizers = {}
    for role in {"optimizer", "critic_optimizer"} & settings.keys():
        optimizer = {name: value(setting) for name, setting in settings[role].items()}
        optimizers[role] = getattr(keras.optimizers, optimizer.pop("name"))(**optimizer)
    agent.compile(**optimizers)
    start = time.perf_counter()
    history = agent.fit(env, **fit, verbose=0).history
    seconds = time.perf_counter() - start
    # 100 episodes of one step say little: returns deviate by 0.4, and algorithms differ by less.
    episodes = 100 if fit["num_steps"] > 1 else 4000
    result = agent.evaluate(env, episodes=episodes, seed=10_000 + seed, verbose=0)
    points = zip(history["env_steps"], history["episode_return"])
    report = {
        "versions": versions(("keras_pg", "tensorflow", "keras", "gymnasium", "numpy")),
        "seed": seed,
        "env_steps": int(agent.env_steps.numpy()),
        # An epoch in which no episode ended has no return.
        "curve": [[steps, round(value, 4)] for steps, value in points if not math.isnan(value)],
        "evaluated_return": result["episode_return"],
        "seconds": seconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
