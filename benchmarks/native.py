"""Speed of training on native environments, beside purejaxrl's, gymnax's, SBX's and SB3's PPO.

CartPole-v1 with purejaxrl's settings, in three sizes of rollout. Libraries run in virtual
environments of their own, which this script makes; purejaxrl and gymnax-blines are not packaged:
give paths to their repositories, or they are left out. Runs alternate, and medians are printed.
Compiling is timed apart from running (see `peers/`); single runs are written to `results/`.

    python benchmarks/native.py --purejaxrl PATH --gymnax-blines PATH
    python benchmarks/native.py --breakout --purejaxrl PATH     # what is learnt of MinAtar's game
    python benchmarks/native.py --scaling     # keras_pg alone, from 1 to 8192 environments

"one thread" is keras_pg with TensorFlow on one thread of each kind, which suits small rollouts.
"""

import argparse
import json
import os
import pathlib
import statistics

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
COLORS = {"keras_pg": "#f58518", "purejaxrl": "#4c78a8"}
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, color in COLORS.items():
        curves = [run["curve"] for run in runs if run["runner"] == name]
        for i, curve in enumerate(curves):
            axes.plot(*zip(*curve), color=color, label=None if i else name, alpha=0.8)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of the episodes that ended")
    axes.set_title("MinAtar's Breakout, purejaxrl's settings, a line a seed")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def scaling(options):
    """Steps a second of the environments alone, and of training, by the number of environments."""
    python, runs = interpreter("keras_pg", options.venvs.resolve()), []
    for exponent in range(14):
        num_envs = 2**exponent
        num_steps = max(16, 512 // num_envs)
        sizes = ["--num-envs", num_envs, "--num-steps", num_steps]
        for what in ("train", "step"):
            steps = max(200_000, 40 * num_envs * num_steps)
            script = "keras_pg_native.py" if what == "train" else "keras_pg_env_steps.py"
            budget = ["--total-timesteps", steps]
            run = measure(python, script, list(map(str, [*sizes, *budget])))
            runs.append({"runner": what, **run})
            print(f"{num_envs} environments, {what}: {run['steps_per_second']:,.0f}", flush=True)
    return runs


def plot(runs, path):
    """Both curves, and what share of the environments' own speed training reaches, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    speeds = {
        what: {
            r["arguments"]["num_envs"]: r["steps_per_second"] for r in runs if r["runner"] == what
        }
        for what in ("step", "train")
    }
    labels = {"step": "environments alone, random actions", "train": "PPO: acting, learning, all"}
    for what, speed in speeds.items():
        axes.plot(list(speed), list(speed.values()), "o-", label=labels[what])
    for n, speed in speeds["train"].items():
        share = f"{speed / speeds['step'][n]:.1%}"
        axes.annotate(share, (n, speed), (0, -12), textcoords="offset points", ha="center", size=7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.6 * min(speeds["train"].values()))
    axes.set_xlabel("environments (512 steps a rollout, or 16 of each)")
    axes.set_ylabel("environment steps a second")
    axes.set_title("CartPole, native: steps a second, and training's share of the ceiling")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--purejaxrl", type=pathlib.Path)
    parser.add_argument("--gymnax-blines", type=pathlib.Path)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--breakout", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--total-timesteps", type=int, help="800,000; of Breakout 5 million")
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    options = parser.parse_args()
    options.total_timesteps = options.total_timesteps or (
        5_000_000 if options.breakout else 800_000
    )
    options.venvs.mkdir(parents=True, exist_ok=True)
    runs = scaling(options) if options.scaling else compare(options)
    report = {"processor": f"{processor()}, {os.cpu_count()} cores", "runs": runs}
    results = HERE / "results"
    kind = "_scaling" if options.scaling else "_breakout" if options.breakout else ""
    (results / f"native{kind}.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.scaling:
        return plot(runs, results / "native_scaling.png")
    if options.breakout:
        plot_curves(runs, results / "native_breakout.png")
    print(f"\n{report['processor']}, {options.runs} runs each\n{table(runs, sizes_of(options))}")


if __name__ == "__main__":
    main()
