"""Command line, timers and JSON report shared by the peer runners.

Imports nothing but the standard library, so a runner pays for no import but its own library's.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import time

SOLVED_RETURN = 475.0
EVALUATION_EPISODES = 100
EVALUATION_INTERVAL = 20_000
WARM_UP_ITERATIONS = 2


def parse_arguments(description):
    """Returns the arguments that every runner takes; the defaults are rl-zoo's for CartPole."""
    parser = argparse.ArgumentParser(
        description=description.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=32, help="steps per environment")
    parser.add_argument("--batch-size", type=int, default=256, help="minibatch size")
    parser.add_argument("--update-epochs", type=int, default=20)
    parser.add_argument("--gamma", type=float, default=0.98)
    parser.add_argument("--gae-lambda", type=float, default=0.8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip-ratio", type=float, default=0.2)
    parser.add_argument("--entropy-coef", type=float, default=0.0)
    parser.add_argument("--value-coef", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    parser.add_argument(
        "--constant-schedules",
        action="store_true",
        help="keep learning rate and clip ratio constant instead of decaying them to 0",
    )
    parser.add_argument(
        "--total-timesteps",
        type=int,
        help="budget, and horizon of the schedules; by default 100000, in solve mode 200000",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves the library's default")
    parser.add_argument(
        "--mode",
        choices=("throughput", "solve"),
        default="throughput",
        help=f"solve stops at the first evaluation with mean return >= {SOLVED_RETURN:g}",
    )
    arguments = parser.parse_args()
    if arguments.total_timesteps is None:
        arguments.total_timesteps = 200_000 if arguments.mode == "solve" else 100_000
    return arguments


class Stopwatch:
    """Seconds since training started, seconds of its phases, and when each iteration ended."""

    def __init__(self):
        self.phase_seconds = {"collect": [], "update": [], "evaluate": []}
        self.iteration_ends = []
        self._measured = 0.0
        self._start = time.perf_counter()

    def elapsed(self):
        """Returns the seconds since this stopwatch was made."""
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def measure(self, phase):
        """Appends the duration of the `with` block, less any phase nested in it, to its phase."""
        start, measured_before = time.perf_counter(), self._measured
        yield
        nested = self._measured - measured_before
        duration = time.perf_counter() - start - nested
        self.phase_seconds[phase].append(duration)
        self._measured += duration

    def end_iteration(self, env_steps):
        """Notes that an iteration ended when `env_steps` steps had been taken in all."""
        self.iteration_ends.append((env_steps, self.elapsed()))


def seconds_since_process_start():
    """Returns the age of this process in seconds (Linux), interpreter start-up included."""
    with open("/proc/self/stat") as stat:
        start_ticks = int(stat.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")


def versions(packages):
    """{distribution: version}, of Python too."""
    installed = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **installed}


def print_report(library, packages, arguments, stopwatch, env_steps, evaluated_return=None):
    """Prints the run's measurements as one line of JSON.

    "steady" figures leave out the first `WARM_UP_ITERATIONS` iterations, where compilation happens.

    Args:
        library: str, the name shown in the benchmark's table.
        packages: names of the distributions whose versions belong to the result.
        arguments: the parsed command line.
        stopwatch: `Stopwatch` made when training started; call this as soon as it ended.
        env_steps: int, transitions collected.
        evaluated_return: float, mean return of the last evaluation, or `None` without one.
    """
    fit_seconds, process_seconds = stopwatch.elapsed(), seconds_since_process_start()
    collect, update = stopwatch.phase_seconds["collect"], stopwatch.phase_seconds["update"]
    report = {
        "library": library,
        "versions": versions(packages),
        "arguments": vars(arguments),
        "seed": arguments.seed,
        "env_steps": env_steps,
        "iterations": len(stopwatch.iteration_ends),
        "collect_seconds": sum(collect),
        "update_seconds": sum(update),
        "evaluate_seconds": sum(stopwatch.phase_seconds["evaluate"]),
        "fit_seconds": fit_seconds,
        "steps_per_second": env_steps / fit_seconds,
        "collect_steps_per_second": env_steps / sum(collect),
        "update_seconds_per_iteration": sum(update) / len(update),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "process_seconds": process_seconds,
    }
    if arguments.mode == "throughput":
        warm_steps, warm_seconds = stopwatch.iteration_ends[WARM_UP_ITERATIONS - 1]
        steady_collect, steady_update = collect[WARM_UP_ITERATIONS:], update[WARM_UP_ITERATIONS:]
        report["steady_steps_per_second"] = (env_steps - warm_steps) / (fit_seconds - warm_seconds)
        report["steady_collect_steps_per_second"] = (env_steps - warm_steps) / sum(steady_collect)
        report["steady_update_seconds_per_iteration"] = sum(steady_update) / len(steady_update)
    else:
        report["evaluated_return"] = evaluated_return
        report["solved"] = evaluated_return is not None and evaluated_return >= SOLVED_RETURN
    print(json.dumps(report), flush=True)
