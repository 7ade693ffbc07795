"""Time of one TRPO update, keras_pg's beside sb3-contrib's, on one machine, in one go.

2048 steps of 17 observations and 6 actions, separate 64-64 tanh networks, 10 iterations of
conjugate gradient; `peers/trpo_protocol.py` has all settings. Each run is a process of its own in
the library's virtual environment, and the runs alternate. Printed are medians over the runs, each
of which is a median over its updates, and the ratio of keras_pg's to each peer's; every run is
written to `results/trust_region.json`.

    python benchmarks/trust_region.py
"""

import argparse
import json
import os
import pathlib
import platform

from throughput import HERE, interpreter, measure, processor, table

# Each way to run a library: the library, its script and options.
RUNNERS = {
    "keras_pg": ("keras_pg", "keras_pg_trpo.py"),
    "keras_pg, 1 thread": ("keras_pg", "keras_pg_trpo.py", "--threads", "1"),
    "sb3-contrib, 1 thread": ("sb3-contrib", "sb3_contrib_trpo.py", "--threads", "1"),
    "sb3-contrib, default threads": ("sb3-contrib", "sb3_contrib_trpo.py"),
}
FIGURES = {
    "actor_ms": "actor's part, ms",
    "whole_ms": "with the critic's regression, ms",
    "actor_first_seconds": "first update of the actor, compilation included, s",
    "whole_first_seconds": "first update with the critic, compilation included, s",
    "actor_line_search_steps": "mean line search steps, actor's part",
    "whole_line_search_steps": "mean line search steps, with the critic",
    "actor_kl": "KL of the step, actor's part",
    "whole_kl": "KL of the step, with the critic",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--updates", type=int, default=50, help="timed in each run")
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    options = parser.parse_args()
    options.venvs.mkdir(parents=True, exist_ok=True)
    libraries = {library for library, *_ in RUNNERS.values()}
    pythons = {library: interpreter(library, options.venvs.resolve()) for library in libraries}
    runs = {runner: [] for runner in RUNNERS}
    for seed in range(options.runs):
        for runner, (library, script, *flags) in RUNNERS.items():
            arguments = [*flags, "--seed", str(seed), "--updates", str(options.updates)]
            run = measure(pythons[library], script, arguments)
            runs[runner].append(run)
            print(
                f"{runner}, seed {seed}: {run['actor_ms']:.1f} ms, with the critic "
                f"{run['whole_ms']:.1f} ms",
                flush=True,
            )
    report = {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "runs": runs,
    }
    (HERE / "results").mkdir(exist_ok=True)
    path = HERE / "results" / "trust_region.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(
        f"\n{report['processor']}; {options.runs} runs each, alternating\n\n{table(runs, FIGURES)}"
    )


if __name__ == "__main__":
    main()
