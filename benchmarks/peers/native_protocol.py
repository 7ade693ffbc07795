"""Command line and JSON report of the runners that `native.py` compares.

All run PPO with purejaxrl's settings: 4 epochs, learning rate to 0, clipping 0.2 of ratios and
values, entropy 0.01, two layers of 64 in each network, no normalization of observations. What is
its own of an environment is in `SETTINGS`: of CartPole-v1 as in its script, of MinAtar's Breakout,
whose observations go into the same layers, as in its notebook.
"""

import argparse
import json
import resource

from protocol import seconds_since_process_start, versions

CURVE_POINTS = 20
SETTINGS = {
    "CartPole": {"learning_rate": 2.5e-4, "num_minibatches": 4, "activation": "tanh"},
    "Breakout": {"learning_rate": 5e-3, "num_minibatches": 8, "activation": "relu"},
}


def parse_arguments(description, *positional, envs=("CartPole",)):
    """The arguments that every runner takes, after the positional ones; `envs` it has."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    for name in positional:
        parser.add_argument(name)
    parser.add_argument("--env", choices=envs, default="CartPole")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def print_report(
    library,
    packages,
    arguments,
    *,
    env_steps,
    compile_seconds,
    run_seconds,
    training_return,
    curve=None,
):
    """Prints one line of JSON; `run_seconds` is without compiling.

    `curve` is of [steps so far, mean return of the episodes that ended since the last entry].
    """
    report = {
        "library": library,
        "versions": versions(packages),
        "arguments": vars(arguments),
        "env_steps": env_steps,
        "compile_seconds": compile_seconds,
        "run_seconds": run_seconds,
        "steps_per_second": env_steps / run_seconds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "process_seconds": seconds_since_process_start(),
        "training_return": training_return,
        **({} if curve is None else {"curve": curve}),
    }
    print(json.dumps(report), flush=True)
