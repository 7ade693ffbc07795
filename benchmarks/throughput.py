"""Speed of keras_pg's PPO beside Stable-Baselines3's and TF-Agents', on one machine, in one go.

Each library runs in a virtual environment of its own, which this script makes, with the same
hyperparameters. The runs alternate (A B C A B C ...): a machine that drifts treats all alike.
Printed are medians over the runs, and the ratio of keras_pg's median to each peer's; every run is
written to `results/`.

    python benchmarks/throughput.py                       # CartPole-v1, 3 runs each
    python benchmarks/throughput.py --task halfcheetah
    python benchmarks/throughput.py --task solve          # until an evaluated return of 475

keras_pg runs in three ways, on single environments stepped one after the other as the peers do, on
`gymnasium.make_vec`'s vectorised CartPole, and on EnvPool's; ratios are of the first.
TF-Agents runs in two ways: in its own training loop, and with its gradient steps in a loop of ours
that XLA compiles (see `peers/tf_agents_ppo.py`).

A figure called "steady" leaves out the first two iterations, in which programs are compiled; the
others have everything in them. Stable-Baselines3 is run with one thread of PyTorch's, and with as
many as PyTorch takes by itself.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).parent
REQUIREMENTS = {
    "keras_pg": None,
    "Stable-Baselines3": "requirements-sb3.txt",
    "TF-Agents": "requirements-tf-agents.txt",
    "sb3-contrib": "requirements-sb3-contrib.txt",
}
# Each way to run a library: the library, its script and options.
RUNNERS = {
    "keras_pg": ("keras_pg", "keras_pg_ppo.py"),
    "keras_pg, make_vec": ("keras_pg", "keras_pg_ppo.py", "--make-vec"),
    "keras_pg, EnvPool": ("keras_pg", "keras_pg_ppo.py", "--envpool"),
    "Stable-Baselines3": ("Stable-Baselines3", "stable_baselines3_ppo.py", "--threads", "1"),
    "Stable-Baselines3, its threads": ("Stable-Baselines3", "stable_baselines3_ppo.py"),
    "TF-Agents": ("TF-Agents", "tf_agents_ppo.py", "--own-loop"),
    "TF-Agents in XLA": ("TF-Agents", "tf_agents_ppo.py"),
}
HALFCHEETAH = [
    *(
        "--env HalfCheetah-v5 --num-envs 1 --num-steps 2048 --batch-size 64 --update-epochs 10"
    ).split(),
    *("--gamma 0.99 --gae-lambda 0.95 --learning-rate 3e-4 --constant-schedules").split(),
    *("--total-timesteps 40960").split(),
]
TASKS = {"cartpole": [], "halfcheetah": HALFCHEETAH, "solve": ["--mode", "solve"]}
FIGURES = {
    "steps_per_second": "env steps/s, all included",
    "steady_steps_per_second": "env steps/s, steady",
    "steady_collect_steps_per_second": "collecting alone, env steps/s, steady",
    "steady_update_seconds_per_iteration": "update alone, s an iteration, steady",
    "peak_rss_mb": "peak memory, MB",
    "process_seconds": "whole process, s",
    "evaluated_return": "evaluated return",
}


def interpreter(library, directory):
    """The Python of a library's virtual environment, made if it is not there yet."""
    path, requirements = directory / library, REQUIREMENTS[library]
    python = path / "bin" / "python"
    if not (path / "complete").exists():
        print(f"Making {path} ...", flush=True)
        venv.create(path, with_pip=True, clear=True)
        # keras_pg as it is in the source tree, then and later.
        ours = ["-e", f"{HERE.parent}[box2d,envpool,mujoco]"]
        what = ["-r", HERE / "peers" / requirements] if requirements else ours
        subprocess.run([python, "-m", "pip", "install", "--quiet", *what], check=True)
        (path / "complete").touch()
    return python


def measure(python, script, arguments):
    """Runs one script and returns the JSON object it prints last."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [python, HERE / "peers" / script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    if result.returncode:
        sys.exit(f"{script} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def processor():
    """The name of this machine's processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(runs, figures=FIGURES):
    """A Markdown table of medians, and of keras_pg's as a ratio of each peer's."""
    peers = [runner for runner in runs if not runner.startswith("keras_pg")]
    header = ["median of the runs", *runs, *(f"keras_pg / {peer}" for peer in peers)]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for figure, label in figures.items():
        if not all(figure in run for results in runs.values() for run in results):
            continue
        medians = {k: statistics.median(r[figure] for r in results) for k, results in runs.items()}
        cells = [f"{median:,.4g}" for median in medians.values()]
        ratios = [f"{medians['keras_pg'] / medians[peer]:.2f}" for peer in peers]
        lines.append([label, *cells, *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=TASKS, default="cartpole")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--runners", nargs="+", choices=RUNNERS, default=list(RUNNERS))
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    parser.add_argument("--total-timesteps", help="in place of the task's own")
    options = parser.parse_args()
    if options.task == "halfcheetah":
        print("TF-Agents' own loop has no minibatches, Gymnasium no vectorised MuJoCo: left out.")
        options.runners = [
            r for r in options.runners if r not in ("TF-Agents", "keras_pg, make_vec")
        ]
    options.venvs.mkdir(parents=True, exist_ok=True)
    libraries = {RUNNERS[runner][0] for runner in options.runners}
    pythons = {library: interpreter(library, options.venvs.resolve()) for library in libraries}
    budget = ["--total-timesteps", options.total_timesteps] if options.total_timesteps else []
    runs = {runner: [] for runner in options.runners}
    for seed in range(options.runs):
        for runner in options.runners:
            library, script, *flags = RUNNERS[runner]
            arguments = [*TASKS[options.task], *budget, "--seed", str(seed)]
            run = measure(pythons[library], script, [*flags, *arguments])
            runs[runner].append(run)
            print(f"{runner}, seed {seed}: {run['steps_per_second']:,.0f} steps/s", flush=True)
    report = {
        "task": options.task,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "runs": runs,
    }
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / f"throughput_{options.task}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['processor']}; {options.runs} runs each, alternating\n\n{table(runs)}")


if __name__ == "__main__":
    main()
