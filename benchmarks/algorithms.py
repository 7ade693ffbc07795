"""What every agent of keras_pg learns: four environments, five seeds, a settings file an algorithm.

    python benchmarks/algorithms.py                                   # all of it
    python benchmarks/algorithms.py --algorithm trpo npg --env CartPole-v1 --seed 0 1
    python benchmarks/algorithms.py --env Pendulum-v1 --redo-before 2026-01-31T12:00
    python benchmarks/algorithms.py --draw                            # runs nothing

Each run is a process of its own, and is added to `results/algorithms/NAME_ENV.json` as it ends;
it is not run again as long as it stands there with the same settings, unless it ended before
`--redo-before` (see `stored.py`). The picture `results/algorithms.png` and the table
`results/algorithms.md` are drawn from all that is there.
Evaluated returns are means over 100 episodes (4000 of the bandit) of the deterministic policy after
training.
"""

import argparse
import concurrent.futures
import json
import pathlib
import threading

import numpy as np
import pictures
import stored
from matplotlib.figure import Figure
from throughput import HERE, interpreter, measure

RESULTS, SETTINGS = HERE / "results", HERE / "settings" / "algorithms"
ALGORITHMS = {
    "reinforce": "REINFORCE",
    "reinforce_baseline": "REINFORCE, baseline",
    "a2c": "A2C",
    "npg": "NPG",
    "trpo": "TRPO",
    "ppo": "PPO",
    "mdpo": "MDPO",
    "grpo": "GRPO",
}
# TRPO with rl-zoo's settings: the settings file, and the return that is published: of one run by
# rl-zoo, and for MuJoCo's of three (environments of version 3) by sb3-contrib. Those have rl-zoo's
# `max_kl` and `cg_damping` times the actions' dimension, over which sb3-contrib takes a mean.
ZOO = {
    "CartPole-v1": ("trpo_zoo", 500),
    "Acrobot-v1": ("trpo", -83),
    "Pendulum-v1": ("trpo", -175),
    "LunarLander-v3": ("trpo_zoo", 133),
    "LunarLanderContinuous-v3": ("trpo_zoo", 262),
    "MountainCarContinuous-v0": ("trpo_zoo", 92),
    "HalfCheetah-v4": ("trpo_zoo", 1803),
    "Hopper-v4": ("trpo_zoo", 3372),
    "Walker2d-v4": ("trpo_zoo", 4502),
    "Swimmer-v4": ("trpo_zoo", 359),
}
# A return that no algorithm need exceed: the task is solved, or the best possible.
LINES = {"CartPole-v1": 475, "Acrobot-v1": -100, "Pendulum-v1": -200, "Bandit-v0": 0.829}


def settings_of(algorithm, env):
    """The settings of an algorithm in an environment; None where it is not run there."""
    settings = json.loads((SETTINGS / f"{algorithm}.json").read_text())
    if env not in settings["environments"]:
        return None
    return {"agent": settings["agent"], **settings["environments"][env]}


def path_of(algorithm, env):
    return RESULTS / "algorithms" / f"{algorithm}_{env}.json"


def runs_of(algorithm, env):
    """The stored runs with today's settings, ordered by seed."""
    if settings_of(algorithm, env) is None:
        return []
    runs = stored.load(path_of(algorithm, env), settings_of(algorithm, env))["runs"]
    return sorted(runs, key=lambda run: run["seed"])


def table():
    """Markdown: evaluated return after training, mean over seeds, and the worst seed's."""
    lines = ["| algorithm | " + " | ".join(LINES) + " |", "|---|" + "---:|" * len(LINES)]
    for algorithm, name in ALGORITHMS.items():
        cells = []
        for env in LINES:
            runs = runs_of(algorithm, env)
            if not runs:
                cells.append("–")
                continue
            returns = [run["evaluated_return"] for run in runs]
            digits = 2 if env == "Bandit-v0" else 0
            steps = max(run["env_steps"] for run in runs) / 1000
            fewer = f"; {len(runs)} of 5 seeds" if len(runs) < 5 else ""
            mean, worst = (f"{value:.{digits}f}" for value in (np.mean(returns), min(returns)))
            cells.append(f"{mean} (worst {worst}; {steps:.0f}k{fewer})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def zoo_table():
    """Markdown: TRPO with rl-zoo's settings."""
    lines = ["| environment | steps | published | keras_pg by seed | mean |"]
    lines.append("|---|---:|---:|---|---:|")
    for env, (algorithm, published) in ZOO.items():
        runs = runs_of(algorithm, env)
        returns = [run["evaluated_return"] for run in runs]
        each = ", ".join(f"{value:.0f}" for value in returns)
        steps = max((run["env_steps"] for run in runs), default=0)
        mean = f"{np.mean(returns):.0f}" if runs else "–"
        lines.append(f"| {env} | {steps:,} | {published} | {each} | {mean} |")
    return "\n".join(lines)


def draw(path):
    """Training return: a row an algorithm, a column an environment, the others' means in gray."""
    names = {a: name for a, name in ALGORITHMS.items() if any(runs_of(a, env) for env in LINES)}
    figure = Figure(figsize=(8.4, 0.5 + 0.95 * len(names)), dpi=200, layout="constrained")
    grid = figure.subplots(len(names), len(LINES), sharex="col", sharey="col", squeeze=False)
    for column, (env, line) in zip(grid.T, LINES.items()):
        curves = {a: [run["curve"] for run in runs_of(a, env)] for a in names}
        for axes, algorithm in zip(column, names):
            for other in names:
                if other != algorithm and curves[other]:
                    steps, returns = pictures.align(curves[other])
                    axes.plot(steps / 1000, returns.mean(axis=0), color="0.8", linewidth=0.7)
            if curves[algorithm]:
                pictures.plot(axes, curves[algorithm], color="#1f5fa8", linewidth=1.5)
            axes.axhline(line, color="black", linestyle=":", linewidth=0.8, zorder=1)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7.5)
            axes.locator_params(axis="y", nbins=4)
        column[0].set_title(env, fontsize=10)
    for row, name in zip(grid, names.values()):
        row[0].set_ylabel(name.replace(", ", ",\n"), fontsize=9, weight="bold")
    seeds = [len(runs_of(a, env)) for a in names for env in LINES if runs_of(a, env)]
    figure.supxlabel(
        f"environment steps, thousands\n\nTraining return. {pictures.caption(seeds)}\n"
        "Gray: the means of the other algorithms. Dotted: solved, or the best possible.",
        fontsize=8.5,
    )
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    algorithms, envs = [*ALGORITHMS, "trpo_zoo"], list(LINES | ZOO)
    parser.add_argument("--algorithm", nargs="+", choices=algorithms, default=algorithms)
    parser.add_argument("--env", nargs="+", choices=envs, default=envs)
    parser.add_argument("--seed", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    stored.add_arguments(parser)
    options = parser.parse_args()
    if not options.draw:
        measure_missing(options)
    draw(RESULTS / "algorithms.png")
    tables = f"{table()}\n\nTRPO with rl-zoo's settings:\n\n{zoo_table()}\n"
    (RESULTS / "algorithms.md").write_text(tables)
    print(tables)


def measure_missing(options):
    """Makes the runs that are asked for and not stored."""
    (RESULTS / "algorithms").mkdir(parents=True, exist_ok=True)
    python = interpreter("keras_pg", options.venvs.resolve())
    lock = threading.Lock()

    def run(seed, env, algorithm):
        report = measure(
            python, "keras_pg_algorithm.py", [SETTINGS / f"{algorithm}.json", env, str(seed)]
        )
        with lock:
            stored.add(path_of(algorithm, env), settings_of(algorithm, env), report, seed=seed)
            value, seconds = report["evaluated_return"], report["seconds"]
            print(f"{algorithm}, {env}, seed {seed}: {value:.2f}, {seconds:.0f} s", flush=True)

    def done(seed, env, algorithm):
        results = stored.load(path_of(algorithm, env), settings_of(algorithm, env))
        return stored.holds(results, options.redo_before, seed=seed)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        missing = [
            pool.submit(run, seed, env, algorithm)
            for seed in options.seed
            for env in options.env
            for algorithm in options.algorithm
            if settings_of(algorithm, env) is not None and not done(seed, env, algorithm)
        ]
        for future in missing:
            future.result()


if __name__ == "__main__":
    main()
