"""Does keras_pg's TRPO make sb3-contrib's update? Single updates of both, number by number.

sb3-contrib trains with rl-zoo's settings; of some of its iterations the rollout and the weights are
kept, and keras_pg makes an update of the same rollout from the same weights. What differs is
printed and written to `results/parity.json`.

    python benchmarks/parity.py
"""

import argparse
import json
import pathlib
import tempfile

from throughput import HERE, interpreter, measure

ENVIRONMENTS, ITERATIONS = ["LunarLanderContinuous-v3", "Swimmer-v4"], ["0", "1", "5", "20"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", nargs="+", default=ENVIRONMENTS)
    parser.add_argument("--venvs", type=pathlib.Path, default=HERE / ".venvs")
    options = parser.parse_args()
    options.venvs.mkdir(parents=True, exist_ok=True)
    theirs, ours = (
        interpreter(library, options.venvs.resolve()) for library in ("sb3-contrib", "keras_pg")
    )
    settings = HERE / "settings" / "algorithms" / "trpo_zoo.json"
    reports = []
    for env in options.env:
        with tempfile.TemporaryDirectory() as directory:
            kept = pathlib.Path(directory) / "updates.npz"
            measure(theirs, "sb3_contrib_updates.py", [settings, env, kept, *ITERATIONS])
            reports.append(measure(ours, "keras_pg_updates.py", [settings, env, kept]))
        for update in reports[-1]["iterations"]:
            print(env, *(f"{name} {value:.4g}" for name, value in update.items()), sep=", ")
    (HERE / "results" / "parity.json").write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
