"""Speed of training on native environments, beside purejaxrl's, gymnax's, SBX's and SB3's PPO.

CartPole-v1 with purejaxrl's settings, in three sizes of rollout. Libraries run in virtual
environments of their own, which this script makes; purejaxrl and gymnax-blines are not packaged:
give paths to their repositories, or they are left out. Runs alternate, and medians are printed.
Compiling is timed apart from running (see `peers/`); single runs are written to `results/`.
Those of `--scaling` are written as they end, and are not made again as long as they stand there
(see `stored.py`).

    python benchmarks/native.py --purejaxrl PATH --gymnax-blines PATH
    python benchmarks/native.py --breakout --purejaxrl PATH     # what is learnt of MinAtar's game
    python benchmarks/native.py --scaling --runs 5    # keras_pg alone, from 1 to 8192 environments
    python benchmarks/native.py --scaling --draw      # runs nothing

"one thread" is keras_pg with TensorFlow on one thread of each kind, which suits small rollouts.
"""

import argparse
import json
import os
import pathlib
import statistics

import stored
from matplotlib.figure import Figure
from throughput import HERE, REQUIREMENTS, interpreter, measure, processor

REQUIREMENTS |= {"JAX": "requirements-jax.txt", "SBX": "requirements-sbx.txt"}
ONE_THREAD = {"TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
# Each way to run a library: the library, its script and first argument, environment variables,
# and its share of the steps, since some are much slower.
RUNNERS = {
    "keras_pg": ("keras_pg", ["keras_pg_native.py"], {}, 1.0),
    "keras_pg, one thread": ("keras_pg", ["keras_pg_native.py"], ONE_THREAD, 1.0),
    "purejaxrl": ("JAX", ["purejaxrl_ppo.py", "purejaxrl"], {}, 1.0),
    "gymnax-blines": ("JAX", ["gymnax_blines_ppo.py", "gymnax_blines"], {}, 0.05),
    "SBX": ("SBX", ["stable_baselines3_native.py", "sbx"], {}, 0.05),
    "Stable-Baselines3": (
        "Stable-Baselines3",
        ["stable_baselines3_native.py", "stable_baselines3"],
        {},
        0.05,
    ),
}
SIZES = [(4, 128), (64, 128), (1024, 16)]
ON_BREAKOUT = ["keras_pg", "purejaxrl"]
LINES = {
    "keras_pg": {"color": "#f58518", "linewidth": 2.0},
    "purejaxrl": {"color": "#1f5fa8", "linewidth": 1.4, "linestyle": (0, (4, 2))},
}
RESULTS = HERE / "results"
# What is measured at each number of environments: its script, its title, its scale and that's name.
SCALING = {
    "step": ("keras_pg_env_steps.py", "Environments alone, random actions", 1e6, "millions"),
    "train": ("keras_pg_native.py", "PPO: acting, learning, all", 1e3, "thousands"),
}
FIGURES = {
    "steps_per_second": ("env steps/s, compiled", "{:,.0f}"),
    "compile_seconds": ("compiling, s", "{:.1f}"),
    "peak_rss_mb": ("peak memory, MB", "{:,.0f}"),
    "training_return": ("return at the end of training", "{:.0f}"),
}


def compare(options):
    """Every runner on every size; returns the runs."""
    paths = {"purejaxrl": options.purejaxrl, "gymnax_blines": options.gymnax_blines}
    runners = {}
    for name, (library, (script, *first), variables, share) in RUNNERS.items():
        if options.breakout and name not in ON_BREAKOUT:
            continue
        if first and first[0] in paths:
            if paths[first[0]] is None:
                print(f"{name} is left out: no path to its repository.")
                continue
            first = [paths[first[0]].resolve()]
        python = interpreter(library, options.venvs.resolve())
        runners[name] = python, script, first, variables, share
    runs = []
    for seed in range(options.runs):
        for num_envs, num_steps in sizes_of(options):
            for name, (python, script, first, variables, share) in runners.items():
                os.environ.update(variables)
                # At least six iterations, of which the first compiles.
                steps = max(int(share * options.total_timesteps), 6 * num_envs * num_steps)
                sizes = ["--num-envs", num_envs, "--num-steps", num_steps]
                budget = ["--total-timesteps", steps, "--seed", seed]
                game = ["--env", "Breakout"] if options.breakout else []
                run = measure(python, script, list(map(str, [*first, *sizes, *budget, *game])))
                for variable in variables:
                    del os.environ[variable]
                run["arguments"].pop("repository", None)
                runs.append({"runner": name, **run})
                speed = run["steps_per_second"]
                print(f"{num_envs} x {num_steps}, {name}, seed {seed}: {speed:,.0f}", flush=True)
    return runs


def sizes_of(options):
    return [(64, 128)] if options.breakout else SIZES


def table(runs, sizes):
    """Markdown: for each size, the medians of every runner and keras_pg's ratio to each."""
    lines = []
    for num_envs, num_steps in sizes:
        of_size = [
            run
            for run in runs
            if (run["arguments"]["num_envs"], run["arguments"]["num_steps"])
            == (num_envs, num_steps)
        ]
        names = list(dict.fromkeys(run["runner"] for run in of_size))
        medians = {
            name: {
                figure: statistics.median(run[figure] for run in of_size if run["runner"] == name)
                for figure in FIGURES
                if all(run[figure] is not None for run in of_size if run["runner"] == name)
            }
            for name in names
        }
        lines += [f"\n{num_envs} environments, {num_steps} steps each\n"]
        lines += ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
        for figure, (label, form) in FIGURES.items():
            cells = [
                form.format(medians[name][figure]) if figure in medians[name] else "-"
                for name in names
            ]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        ours = medians["keras_pg"]["steps_per_second"]
        ratios = [f"{ours / medians[name]['steps_per_second']:.2f}" for name in names]
        lines.append("| keras_pg / it | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def plot_curves(runs, path):
    """Return against environment steps, a line a seed, as a PNG."""
    figure = Figure(figsize=(7, 4), dpi=200, layout="constrained")
    axes = figure.subplots()
    for name, line in LINES.items():
        curves = [run["curve"] for run in runs if run["runner"] == name]
        for i, curve in enumerate(curves):
            steps, returns = zip(*curve)
            label = None if i else f"{name}, {len(curves)} seeds"
            axes.plot([n / 1e6 for n in steps], returns, label=label, **line)
    axes.set_xlabel("environment steps, millions")
    axes.set_ylabel("mean return of the episodes that ended")
    axes.set_title("MinAtar's Breakout, purejaxrl's settings, a line a seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def scaling(options):
    """Steps a second of the environments alone, and of training, by the number of environments.

    All of it is measured once before any of it is measured again: a machine that is slow for a
    minute shows in one repeat of some points, and not in all repeats of one.
    """
    path, least = RESULTS / "native_scaling.json", options.total_timesteps
    # Environments alone are so fast that the same steps would be over in milliseconds.
    settings = {"env": "CartPole", "least_timesteps": {"train": least, "step": 100 * least}}
    python = interpreter("keras_pg", options.venvs.resolve())
    for seed in range(options.runs):
        for num_envs in options.num_envs:
            num_steps = max(16, 512 // num_envs)
            for runner, (script, *_) in SCALING.items():
                which = {"runner": runner, "num_envs": num_envs, "seed": seed}
                if stored.holds(stored.load(path, settings), options.redo_before, **which):
                    continue
                steps = max(settings["least_timesteps"][runner], 40 * num_envs * num_steps)
                sizes = ["--num-envs", num_envs, "--num-steps", num_steps]
                budget = ["--total-timesteps", steps, "--seed", seed]
                run = measure(python, script, list(map(str, [*sizes, *budget])))
                stored.add(path, settings, {"runner": runner, **run}, **which)
                speed = run["steps_per_second"]
                print(f"{num_envs} environments, {runner}, seed {seed}: {speed:,.0f}", flush=True)


def plot_scaling(runs, path):
    """Medians and ranges of both speeds, and training's share of the environments' own."""
    speeds = {}  # {runner: {num_envs: [steps a second]}}
    for run in sorted(runs, key=lambda run: run["arguments"]["num_envs"]):
        by_size = speeds.setdefault(run["runner"], {})
        by_size.setdefault(run["arguments"]["num_envs"], []).append(run["steps_per_second"])
    medians = {
        runner: {n: statistics.median(values) for n, values in by_size.items()}
        for runner, by_size in speeds.items()
    }
    figure = Figure(figsize=(7, 5.6), dpi=200, layout="constrained")
    for axes, runner in zip(figure.subplots(2, sharex=True), SCALING):
        _, title, scale, unit = SCALING[runner]
        middle = [value / scale for value in medians[runner].values()]
        low = [min(values) / scale for values in speeds[runner].values()]
        high = [max(values) / scale for values in speeds[runner].values()]
        whiskers = [
            [m - value for m, value in zip(middle, low)],
            [value - m for m, value in zip(middle, high)],
        ]
        axes.errorbar(
            list(medians[runner]),
            middle,
            whiskers,
            fmt="o-",
            color="#1f5fa8",
            linewidth=1.2,
            markersize=4,
            capsize=4,
        )
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.15 * max(high))
        axes.set_ylabel(f"steps a second, {unit}")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    for n, speed, bottom in zip(medians["train"], medians["train"].values(), low):
        if n in medians["step"]:
            share = f"{speed / medians['step'][n]:.1%}"
            axes.annotate(
                share, (n, bottom), (0, -13), textcoords="offset points", ha="center", size=7.5
            )
    counts = sorted({len(values) for by_size in speeds.values() for values in by_size.values()})
    several = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    figure.supxlabel(
        "environments (512 steps a rollout, or 16 of each)\n\n"
        + (
            "Points: single runs, no repeats."
            if counts == [1]
            else f"Points: medians of {several} alternating runs. Whiskers: slowest and fastest."
        )
        + "\nPercentages: training's share of the environments' own speed.",
        fontsize=9,
    )
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--purejaxrl", type=pathlib.Path)
    parser.add_argument("--gymnax-blines", type=pathlib.Path)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--breakout", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--total-timesteps", type=int, help="800,000; of Breakout 5 million; of scaling 200,000"
    )
    parser.add_argument(
        "--num-envs", nargs="+", type=int, default=[2**i for i in range(14)], help="of scaling"
    )
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    stored.add_arguments(parser)
    options = parser.parse_args()
    if options.redo_before and not options.scaling:
        parser.error("--redo-before needs --scaling: without it all runs are made again anyway.")
    options.total_timesteps = options.total_timesteps or (
        5_000_000 if options.breakout else 200_000 if options.scaling else 800_000
    )
    kind = "_scaling" if options.scaling else "_breakout" if options.breakout else ""
    path = RESULTS / f"native{kind}.json"
    if not options.draw:
        options.venvs.mkdir(parents=True, exist_ok=True)
        if options.scaling:
            scaling(options)
        else:
            report = {"processor": f"{processor()}, {os.cpu_count()} cores"}
            report["runs"] = compare(options)
            path.write_text(json.dumps(report, indent=1) + "\n")
    report = json.loads(path.read_text())
    if options.scaling:
        return plot_scaling(report["runs"], RESULTS / "native_scaling.png")
    if options.breakout:
        plot_curves(report["runs"], RESULTS / "native_breakout.png")
    repeats = len({run["arguments"]["seed"] for run in report["runs"]})
    print(
        f"\n{report['processor']}, {repeats} runs each\n{table(report['runs'], sizes_of(options))}"
    )


if __name__ == "__main__":
    main()
