"""The benchmarks' own code: which runs are kept and made again, and what is drawn of them."""

import datetime
import doctest
import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
# Returns of an episode; of Pendulum-v1 those of 200 steps of -(π² + 0.1 * 8² + 0.001 * 2²).
POSSIBLE = {
    "CartPole-v1": (0, 500),
    "Acrobot-v1": (-500, 0),
    "Pendulum-v1": (-3255, 0),
    "Bandit-v0": (-1, 1.5),
    "LunarLander-v3": (-1000, 320),
}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script of `benchmarks/` by its name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def figures(monkeypatch):
    """The figures that would have been saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: saved.append(figure))
    return saved


@pytest.fixture
def run_script(benchmark, tmp_path, monkeypatch):
    """Runs a script on an empty folder of results; returns what its processes would have got."""

    def run_script(name, *arguments):
        script, calls = benchmark(name), []

        def measure(python, peer, arguments):
            calls.append([peer, *map(str, arguments)])
            return fake_report(calls[-1])

        monkeypatch.setattr(script, "RESULTS", tmp_path)
        monkeypatch.setattr(script, "interpreter", lambda library, directory: "python")
        monkeypatch.setattr(script, "measure", measure)
        monkeypatch.setattr(sys, "argv", [name, "--venvs", str(tmp_path / "venvs"), *arguments])
        script.main()
        return calls

    return run_script


def fake_report(call):
    if "--num-envs" in call:
        options = dict(zip(call[1::2], map(int, call[2::2])))
        sizes = {"num_envs": options["--num-envs"], "seed": options["--seed"]}
        # One of three repeats is fast, one slow.
        speed = [2e5, 1e5, 6e5][options["--seed"]]
        return {"arguments": sizes, "steps_per_second": speed}
    return {
        "seed": int(call[-1]),
        "library": "Stable-Baselines3" if "stable" in call[0] else "keras_pg",
        "curve": [[1000, -1200.0], [2000, -200.0 - int(call[-1])]],
        "evaluated_return": -200.0,
        "env_steps": 2000,
        "seconds": 1.0,
    }


def in_a_moment():
    return (datetime.datetime.now() + datetime.timedelta(minutes=1)).isoformat()


def vertices(collection):
    return np.concatenate([path.vertices for path in collection.get_paths()])


def test_doctests_of_pictures(benchmark):
    results = doctest.testmod(benchmark("pictures"))
    assert results.attempted > 2 and results.failed == 0


def test_a_band_is_from_the_worst_to_the_best_seed_and_never_beyond(benchmark):
    """Where a mean of 480 less or more three standard errors of 20 would go beyond 500."""
    curves = [[[0, 20.0], [50_000, 500.0], [100_000, last]] for last in (500.0, 500.0, 440.0)]
    axes = Figure().subplots()
    benchmark("pictures").plot(axes, curves, color="black", label="mean")
    band = vertices(axes.collections[0])
    assert band[:, 1].max() <= 500 and band[:, 1].min() >= 20
    at_end = band[np.isclose(band[:, 0], band[:, 0].max()), 1]
    np.testing.assert_allclose([at_end.min(), at_end.max()], [440, 500], atol=2)
    (mean,) = [line for line in axes.lines if line.get_label() == "mean"]
    np.testing.assert_allclose(mean.get_ydata()[-1], 480, atol=1)


def test_curves_are_compared_over_the_steps_that_all_of_them_have(benchmark):
    steps, returns = benchmark("pictures").align([[[10, 1], [90, 1]], [[20, 2], [100, 2]]])
    assert 20 < steps[0] < steps[-1] < 90
    np.testing.assert_allclose(returns, [[1] * len(steps), [2] * len(steps)])


def test_every_algorithm_has_panels_in_which_its_line_alone_has_a_color(benchmark, figures):
    algorithms = benchmark("algorithms")
    algorithms.draw("algorithms.png")
    (figure,) = figures
    assert len(figure.axes) == len(algorithms.ALGORITHMS) * len(
        POSSIBLE.keys() - {"LunarLander-v3"}
    )
    assert "Band: from the worst to the best seed." in figure.get_supxlabel()
    for axes, env in zip(figure.axes, len(algorithms.ALGORITHMS) * list(algorithms.LINES)):
        low, high = POSSIBLE[env]
        means = [line for line in axes.lines if line.get_linewidth() == 1.5]
        assert len(means) == 1
        band = vertices(axes.collections[0])[:, 1]
        assert low <= band.min() and band.max() <= high


def test_bands_of_both_libraries_stay_where_returns_are_possible(benchmark, figures):
    learning = benchmark("learning")
    learning.draw({env: learning.results_of(env) for env in learning.BARS}, "learning.png")
    (figure,) = figures
    assert "Band: from the worst to the best seed." in figure.get_supxlabel()
    for axes, env in zip(figure.axes, learning.BARS):
        assert {line.get_linestyle() for line in axes.lines} >= {"-", "--"}
        for collection in axes.collections:
            band = vertices(collection)[:, 1]
            assert POSSIBLE[env][0] <= band.min() and band.max() <= POSSIBLE[env][1]


@pytest.mark.parametrize("name, start", [("algorithms", ["--algorithm", "ppo"]), ("learning", [])])
def test_part_of_the_runs_is_made_anew_and_merged(run_script, figures, tmp_path, name, start):
    pendulum = [*start, "--env", "Pendulum-v1"]
    libraries = 1 if name == "algorithms" else 2
    assert len(run_script(name, *pendulum, "--seed", "0", "1", "2")) == 3 * libraries
    assert run_script(name, *pendulum, "--seed", "0", "1", "2") == []
    assert len(run_script(name, *pendulum, "--seed", "2", "3")) == libraries
    (path,) = tmp_path.rglob("*Pendulum-v1.json")
    # As runs were stored before their ends were.
    results = json.loads(path.read_text())
    for run in results["runs"]:
        del run["ended"]
    path.write_text(json.dumps(results))
    now = ["--redo-before", datetime.datetime.now().isoformat(timespec="seconds")]
    again = run_script(name, *pendulum, "--seed", "1", *now)
    assert [call[-1] for call in again] == ["1"] * libraries
    # The same command, after an interruption or not, finds it done; another seed it does not.
    again = run_script(name, *pendulum, "--seed", "0", "1", *now)
    assert [call[-1] for call in again] == ["0"] * libraries
    runs = json.loads(path.read_text())["runs"]
    assert sorted(run["seed"] for run in runs) == sorted([0, 1, 2, 3] * libraries)
    assert sum("ended" in run for run in runs) == 2 * libraries
    assert run_script(name, *pendulum, "--redo-before", in_a_moment(), "--draw") == []


def test_runs_with_other_settings_are_not_kept(benchmark, tmp_path):
    stored, path = benchmark("stored"), tmp_path / "runs.json"
    stored.add(path, {"gamma": 0.9}, {"seed": 0}, seed=0)
    assert stored.holds(stored.load(path, {"gamma": 0.9}), seed=0)
    assert not stored.holds(stored.load(path, {"gamma": 0.5}), seed=0)
    stored.add(path, {"gamma": 0.5}, {"seed": 1}, seed=1)
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["runs.json"]


def test_scaling_alternates_and_draws_medians_with_the_slowest_and_the_fastest(
    run_script, figures, tmp_path
):
    options = ["--scaling", "--runs", "3", "--num-envs", "1", "64"]
    calls = run_script("native", *options)
    order = [(call[0], call[call.index("--num-envs") + 1], call[-1]) for call in calls]
    once = [
        (script, num_envs)
        for num_envs in ("1", "64")
        for script in ("keras_pg_env_steps.py", "keras_pg_native.py")
    ]
    assert order == [(*point, seed) for seed in "012" for point in once]
    assert run_script("native", *options) == []
    assert len(run_script("native", *options, "--redo-before", in_a_moment())) == 12
    assert len(json.loads((tmp_path / "native_scaling.json").read_text())["runs"]) == 12
    alone, training = figures[-1].axes
    assert "medians of 3 alternating runs" in figures[-1].get_supxlabel()
    for axes, scale in ((alone, 1e6), (training, 1e3)):
        (bars,) = axes.containers
        np.testing.assert_allclose(bars[0].get_ydata(orig=False), [2e5 / scale] * 2)
        for segment in bars[2][0].get_segments():
            np.testing.assert_allclose(segment[:, 1], [1e5 / scale, 6e5 / scale])


def test_only_scaling_has_runs_that_need_to_be_told_to_be_made_again(run_script, capsys):
    with pytest.raises(SystemExit):
        run_script("native", "--redo-before", "2026-01-31")
    assert "--redo-before needs --scaling" in capsys.readouterr().err
