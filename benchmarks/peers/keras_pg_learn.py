"""Trains keras_pg's PPO with a settings file; prints its curve as one JSON line.

python keras_pg_learn.py ../settings/CartPole-v1.json 0
"""

import json
import math
import pathlib
import sys
import time

import keras
from protocol import versions

import keras_pg


def main():
    settings, seed = json.loads(pathlib.Path(sys.argv[1]).read_text()), int(sys.argv[2])
    batch_size = settings["num_envs"] * settings["num_steps"]
    num_minibatches = batch_size // settings["batch_size"]
    iterations = math.ceil(settings["total_timesteps"] / batch_size)
    gradient_steps = iterations * settings["update_epochs"] * num_minibatches
    # About 20 points of the curve, and exactly as many iterations as elsewhere.
    divisors = [n for n in range(1, iterations + 1) if iterations % n == 0]
    epochs = min(divisors, key=lambda n: abs(math.log(n / 20)))

    def schedule(value):
        if not settings["linear_schedules"]:
            return value
        return keras.optimizers.schedules.PolynomialDecay(value, gradient_steps, 0.0)

    agent = keras_pg.PPO(
        gamma=settings["gamma"],
        gae_lambda=settings["gae_lambda"],
        clip_ratio=schedule(settings["clip_ratio"]),
        entropy_coef=settings["entropy_coef"],
        value_coef=settings["value_coef"],
        update_epochs=settings["update_epochs"],
        num_minibatches=num_minibatches,
        normalize_observations=settings["normalize"],
        normalize_rewards=settings["normalize"],
        seed=seed,
    )
    optimizer = keras.optimizers.Adam(
        schedule(settings["learning_rate"]),
        epsilon=1e-5,
        global_clipnorm=settings["max_grad_norm"],
    )
    agent.compile(optimizer)
    start = time.perf_counter()
    history = agent.fit(
        settings["env"],
        num_envs=settings["num_envs"],
        num_steps=settings["num_steps"],
        epochs=epochs,
        steps_per_epoch=iterations // epochs,
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    result = agent.evaluate(settings["env"], episodes=100, seed=10_000 + seed, verbose=0)
    report = {
        "library": "keras_pg",
        "versions": versions(("keras_pg", "tensorflow", "keras", "gymnasium", "numpy")),
        "seed": seed,
        "env_steps": int(agent.env_steps.numpy()),
        "curve": list(zip(history["env_steps"], history["episode_return"])),
        "evaluated_return": result["episode_return"],
        "seconds": seconds,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
