"""What keras_pg's PPO learns beside Stable-Baselines3's: same settings, same steps, several seeds.

    python benchmarks/learning.py                                # all settings, 5 seeds, both
    python benchmarks/learning.py --env Pendulum-v1 --libraries keras_pg --seed 0 1
    python benchmarks/learning.py --env Pendulum-v1 --redo-before 2026-01-31T12:00
    python benchmarks/learning.py --draw                         # runs nothing

Each run is added to `results/learning_ENV.json` as it ends, and is not run again as long as it
stands there with the same settings, unless it ended before `--redo-before` (see `stored.py`). The
picture `results/learning.png` and the table are drawn from all that is there. Evaluated returns are
means over 100 episodes of the deterministic policy after training.
"""

import argparse
import json
import pathlib

import numpy as np
import pictures
import stored
from matplotlib.figure import Figure
from throughput import HERE, interpreter, measure

RESULTS = HERE / "results"
SCRIPTS = {
    "keras_pg": "keras_pg_learn.py",
    "Stable-Baselines3": "stable_baselines3_learn.py",
}
BARS = {"CartPole-v1": 475, "Acrobot-v1": -90, "Pendulum-v1": -200, "LunarLander-v3": 200}
# The second is dashed: where both lines are one, both are seen.
LINES = {
    "keras_pg": {"color": "#f58518", "linewidth": 2.4},
    "Stable-Baselines3": {"color": "#1f5fa8", "linewidth": 1.4, "linestyle": (0, (4, 2.5))},
}


def path_of(env):
    return RESULTS / f"learning_{env}.json"


def results_of(env):
    """The stored results of an environment with today's settings."""
    return stored.load(path_of(env), json.loads((HERE / "settings" / f"{env}.json").read_text()))


def runs_by_library(results):
    """{library: reports ordered by seed}."""
    libraries = {library: [] for library in SCRIPTS}
    for report in sorted(results["runs"], key=lambda report: report["seed"]):
        libraries[report["library"]].append(report)
    return {library: reports for library, reports in libraries.items() if reports}


def table(all_results):
    """Markdown: evaluated returns of every seed."""
    lines = ["| environment | steps | bar | library | return by seed | mean |"]
    lines.append("|---|---:|---:|---|---|---:|")
    for env, results in all_results.items():
        for library, reports in runs_by_library(results).items():
            returns = [report["evaluated_return"] for report in reports]
            each = ", ".join(f"{value:.0f}" for value in returns)
            steps = f"{reports[0]['env_steps']:,}"
            lines.append(
                f"| {env} | {steps} | {BARS[env]} | {library} | {each} | {np.mean(returns):.1f} |"
            )
    return "\n".join(lines)


def draw(all_results, path):
    """Training return, mean over seeds with the range from worst to best seed."""
    columns = min(2, len(all_results))
    rows = (len(all_results) + 1) // 2
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.6), dpi=200, layout="constrained")
    seeds = []
    for i, (env, results) in enumerate(all_results.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for library, reports in runs_by_library(results).items():
            seeds.append(len(reports))
            curves = [report["curve"] for report in reports]
            pictures.plot(axes, curves, label=library, **LINES[library])
        axes.axhline(BARS[env], color="black", linestyle=":", linewidth=0.8, zorder=1)
        axes.set_title(env, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.supylabel("training return", fontsize=9)
    figure.supxlabel(
        f"environment steps, thousands\n\n{pictures.caption(seeds)} Dotted: the return aimed at.",
        fontsize=9,
    )
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--seed", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--libraries", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    stored.add_arguments(parser)
    options = parser.parse_args()
    if not options.draw:
        measure_missing(options)
    all_results = {env: results_of(env) for env in BARS if results_of(env)["runs"]}
    draw(all_results, RESULTS / "learning.png")
    (RESULTS / "learning.md").write_text(table(all_results) + "\n")
    print(table(all_results))


def measure_missing(options):
    """Makes the runs that are asked for and not stored."""
    RESULTS.mkdir(exist_ok=True)
    pythons = {
        library: interpreter(library, options.venvs.resolve()) for library in options.libraries
    }
    for env in options.env:
        for seed in options.seed:
            for library in options.libraries:
                results, which = results_of(env), {"library": library, "seed": seed}
                if stored.holds(results, options.redo_before, **which):
                    continue
                settings = HERE / "settings" / f"{env}.json"
                report = measure(pythons[library], SCRIPTS[library], [settings, str(seed)])
                stored.add(path_of(env), results["settings"], report, **which)
                value = report["evaluated_return"]
                print(f"{env}, {library}, seed {seed}: {value:.1f}", flush=True)


if __name__ == "__main__":
    main()
