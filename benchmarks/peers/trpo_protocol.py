"""Settings, data, timing and JSON report shared by the runners of one TRPO update."""

import argparse
import importlib.metadata
import json
import platform
import statistics
import time

import gymnasium
import numpy as np


def parse_arguments(description):
    """Returns the arguments that both runners take; the defaults are the benchmark's."""
    parser = argparse.ArgumentParser(
        description=description.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--observation-size", type=int, default=17)
    parser.add_argument("--action-size", type=int, default=6)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=256, help="steps per environment")
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--max-kl", type=float, default=0.01, help="summed over action dimensions")
    parser.add_argument("--cg-iters", type=int, default=10)
    parser.add_argument("--cg-damping", type=float, default=0.1)
    parser.add_argument("--backtrack-ratio", type=float, default=0.8)
    parser.add_argument("--backtrack-iters", type=int, default=10)
    parser.add_argument("--critic-epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128, help="the critic's minibatch size")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="the critic's")
    parser.add_argument("--adam-epsilon", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the weights")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the library's default")
    parser.add_argument("--warm-up", type=int, default=5, help="updates between first and timed")
    parser.add_argument("--updates", type=int, default=50, help="updates that are timed")
    return parser.parse_args()


def make_spaces(arguments):
    """Returns the observation space and the action space."""
    return (
        gymnasium.spaces.Box(-np.inf, np.inf, (arguments.observation_size,)),
        gymnasium.spaces.Box(-1.0, 1.0, (arguments.action_size,)),
    )


def synthetic_rollout(arguments):
    """Random observations, actions, rewards and ends of episodes, time-major [T, N, ...].

    The actions are standard normal, which is what both libraries' initial policies sample. The
    observations are one more than the steps.
    """
    rng = np.random.default_rng(arguments.seed)
    num_steps, num_envs = arguments.num_steps, arguments.num_envs

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "observations": normal(num_steps + 1, num_envs, arguments.observation_size),
        "actions": normal(num_steps, num_envs, arguments.action_size),
        "rewards": normal(num_steps, num_envs),
        "terminated": rng.random((num_steps, num_envs)) < 0.01,
    }


def measure_updates(update, restore, arguments):
    """Times an update that starts from the same weights every time.

    Args:
        update: () → {name: number}, what one update reports of itself.
        restore: () → None, brings the initial weights back; not timed.
        arguments: the parsed command line.

    Returns:
        Median, minimum and maximum in ms; the seconds of the very first update, compilation
        included; means of what the timed updates reported.
    """
    start = time.perf_counter()
    update()
    first_seconds = time.perf_counter() - start
    seconds, reports = [], []
    for i in range(arguments.warm_up + arguments.updates):
        restore()
        start = time.perf_counter()
        report = update()
        if i >= arguments.warm_up:
            seconds.append(time.perf_counter() - start)
            reports.append(report)
    return {
        "ms": 1e3 * statistics.median(seconds),
        "ms_min": 1e3 * min(seconds),
        "ms_max": 1e3 * max(seconds),
        "first_seconds": first_seconds,
        **{name: statistics.fmean(report[name] for report in reports) for name in reports[0]},
    }


def print_report(library, packages, arguments, threads, **parts):
    """Prints the measurements of an update's parts as one line of JSON."""
    report = {
        "library": library,
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "arguments": vars(arguments),
        "seed": arguments.seed,
        "threads": threads,
    }
    for part, figures in parts.items():
        report |= {f"{part}_{name}": value for name, value in figures.items()}
    print(json.dumps(report), flush=True)
