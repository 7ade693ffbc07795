"""What every agent of keras_pg learns: four environments, five seeds, a settings file an algorithm.

    python benchmarks/algorithms.py                                   # all of it
    python benchmarks/algorithms.py --algorithm trpo --env CartPole-v1 --seeds 2

Each run is a process of its own, and is added to `results/algorithms/NAME_ENV.json` as it ends;
it is not run again as long as it stands there with the same settings. The picture
`results/algorithms.png` and the table `results/algorithms.md` are drawn from all that is there.
Evaluated returns are means over 100 episodes (4000 of the bandit) of the deterministic policy after
training.
"""

import argparse
import concurrent.futures
import json
import pathlib
import threading

import numpy as np
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
# Student's t: the half-width of a 95% confidence interval of a mean of n, in standard errors.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


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


def half_width(values):
    """Of the 95% confidence interval of the mean over the first axis; 0 for a single run."""
    n = len(values)
    return (
        T95[n] * np.std(values, axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(values[0])
    )


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
    """Training return, mean over seeds, with the 95% confidence interval of that mean."""
    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    for i, (env, line) in enumerate(LINES.items()):
        axes = figure.add_subplot(2, 2, i + 1)
        for j, (algorithm, name) in enumerate(ALGORITHMS.items()):
            curves = [np.array(run["curve"]).T for run in runs_of(algorithm, env)]
            if not curves:
                continue
            # Epochs of whole episodes end at steps of their own in each run.
            start, end = max(c[0][0] for c in curves), min(c[0][-1] for c in curves)
            steps = np.linspace(start, end, 25)
            returns = [np.interp(steps, *curve) for curve in curves]
            mean, half = np.mean(returns, axis=0), half_width(returns)
            axes.plot(steps / 1000, mean, color=f"C{j}", label=name, linewidth=1.4)
            axes.fill_between(
                steps / 1000, mean - half, mean + half, color=f"C{j}", alpha=0.15, lw=0
            )
        axes.axhline(line, color="gray", linestyle=":", linewidth=1)
        axes.set(title=env, xlabel="environment steps, thousands", ylabel="training return")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    algorithms, envs = [*ALGORITHMS, "trpo_zoo"], list(LINES | ZOO)
    parser.add_argument("--algorithm", nargs="+", choices=algorithms, default=algorithms)
    parser.add_argument("--env", nargs="+", choices=envs, default=envs)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    options = parser.parse_args()
    (RESULTS / "algorithms").mkdir(parents=True, exist_ok=True)
    python = interpreter("keras_pg", options.venvs.resolve())
    lock = threading.Lock()

    def run(seed, env, algorithm):
        report = measure(
            python, "keras_pg_algorithm.py", [SETTINGS / f"{algorithm}.json", env, str(seed)]
        )
        with lock:
            stored.add(path_of(algorithm, env), settings_of(algorithm, env), report)
            value, seconds = report["evaluated_return"], report["seconds"]
            print(f"{algorithm}, {env}, seed {seed}: {value:.2f}, {seconds:.0f} s", flush=True)

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        missing = [
            pool.submit(run, seed, env, algorithm)
            for seed in range(options.seeds)
            for env in options.env
            for algorithm in options.algorithm
            if settings_of(algorithm, env) is not None
            and seed not in {run["seed"] for run in runs_of(algorithm, env)}
        ]
        for future in missing:
            future.result()
    draw(RESULTS / "algorithms.png")
    tables = f"{table()}\n\nTRPO with rl-zoo's settings:\n\n{zoo_table()}\n"
    (RESULTS / "algorithms.md").write_text(tables)
    print(tables)


if __name__ == "__main__":
    main()
