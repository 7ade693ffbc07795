"""Command line and JSON report of the runners that `native.py` compares.

All run PPO on CartPole-v1 with purejaxrl's settings, which are CleanRL's: 4 epochs of 4
minibatches, learning rate from 2.5e-4 to 0, clipping 0.2 of ratios and values, entropy 0.01,
networks of 64-64 with tanh, no normalization of observations.
"""

import argparse
import json
import resource

from protocol import seconds_since_process_start, versions


def parse_arguments(description, *positional):
    """The arguments that every runner takes, after the positional ones."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    for name in positional:
        parser.add_argument(name)
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--total-timesteps", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def print_report(
    library, packages, arguments, *, env_steps, compile_seconds, run_seconds, training_return
):
    """Prints one line of JSON; `run_seconds` is without compiling."""
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
    }
    print(json.dumps(report), flush=True)
