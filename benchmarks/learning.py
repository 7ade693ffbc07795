"""What keras_pg's PPO learns beside Stable-Baselines3's: same settings, same steps, several seeds.

    python benchmarks/learning.py                                # all settings, 5 seeds, both
    python benchmarks/learning.py --env Pendulum-v1 --seeds 2

Each run is added to `results/learning_ENV.json` as it ends, and is not run again as long as it
stands there with the same settings. The picture `results/learning.png` and the table are drawn from
all that is there. Evaluated returns are means over 100 episodes of the deterministic policy after
training.
"""

import argparse
import json
import pathlib

import numpy as np
import stored
from matplotlib.figure import Figure
from throughput import HERE, interpreter, measure

RESULTS = HERE / "results"
SCRIPTS = {
    "keras_pg": "keras_pg_learn.py",
    "Stable-Baselines3": "stable_baselines3_learn.py",
}
BARS = {"CartPole-v1": 475, "Acrobot-v1": -90, "Pendulum-v1": -200, "LunarLander-v3": 200}
COLORS = {"keras_pg": "#f58518", "Stable-Baselines3": "#4c78a8"}


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
    """Mean training return over seeds with the range from worst to best seed."""
    columns = min(2, len(all_results))
    rows = (len(all_results) + 1) // 2
    figure = Figure(figsize=(5.5 * columns, 3.2 * rows), dpi=110, layout="constrained")
    for i, (env, results) in enumerate(all_results.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for library, reports in runs_by_library(results).items():
            steps = np.array(reports[0]["curve"])[:, 0]
            returns = [np.interp(steps, *np.array(report["curve"]).T) for report in reports]
            label, steps = f"{library}, {len(reports)} seeds", steps / 1000
            axes.plot(steps, np.mean(returns, axis=0), color=COLORS[library], label=label)
            low, high = np.min(returns, axis=0), np.max(returns, axis=0)
            axes.fill_between(steps, low, high, color=COLORS[library], alpha=0.2, linewidth=0)
        axes.axhline(BARS[env], color="gray", linestyle=":", linewidth=1)
        axes.set(title=env, xlabel="environment steps, thousands", ylabel="training return")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--libraries", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    pythons = {
        library: interpreter(library, options.venvs.resolve()) for library in options.libraries
    }
    for env in options.env:
        for seed in range(options.seeds):
            for library in options.libraries:
                results = results_of(env)
                if any((r["library"], r["seed"]) == (library, seed) for r in results["runs"]):
                    continue
                settings = HERE / "settings" / f"{env}.json"
                report = measure(pythons[library], SCRIPTS[library], [settings, str(seed)])
                stored.add(path_of(env), results["settings"], report)
                value = report["evaluated_return"]
                print(f"{env}, {library}, seed {seed}: {value:.1f}", flush=True)
    all_results = {env: results_of(env) for env in BARS if results_of(env)["runs"]}
    draw(all_results, RESULTS / "learning.png")
    (RESULTS / "learning.md").write_text(table(all_results) + "\n")
    print(table(all_results))


if __name__ == "__main__":
    main()
