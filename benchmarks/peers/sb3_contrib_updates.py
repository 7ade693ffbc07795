"""Trains sb3-contrib's TRPO for some iterations and writes what some of them began and ended with.

    python sb3_contrib_updates.py ../settings/algorithms/trpo_zoo.json Swimmer-v4 OUTPUT.npz 0 1 5

Of each iteration that is asked for: the rollout as its buffer has it, and all weights before and
after the update. `keras_pg_updates.py` makes the same updates of them.
"""

import json
import sys

import numpy as np
from sb3_contrib_learn import make_model

FIELDS = ("observations", "actions", "rewards", "episode_starts", "values", "advantages", "returns")


def main():
    settings, env, output, *iterations = sys.argv[1:]
    iterations = [int(i) for i in iterations]
    model, settings = make_model(settings, env, 0)
    seen, update, done = {}, model.train, 0

    def keep_weights(when):
        for name, parameter in model.policy.named_parameters():
            seen[f"{done}/{when}/{name}"] = parameter.detach().numpy().copy()

    def traced_update():
        nonlocal done
        if done not in iterations:
            update()
        else:
            for field in FIELDS:  # copied now: the update flattens them
                seen[f"{done}/{field}"] = getattr(model.rollout_buffer, field).copy()
            seen[f"{done}/last_observations"] = model._last_obs.astype(np.float32)
            seen[f"{done}/last_starts"] = model._last_episode_starts.copy()
            keep_weights("before")
            update()
            keep_weights("after")
        done += 1

    model.train = traced_update
    fit = settings["fit"]
    model.learn(fit["num_envs"] * fit["num_steps"] * (max(iterations) + 1))
    np.savez(output, **seen)
    print(json.dumps({"iterations": iterations}))


if __name__ == "__main__":
    main()
