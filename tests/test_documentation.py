"""What README and the examples show is run, with fewer steps."""

import contextlib
import pathlib
import re
import runpy
import socket

import keras
import numpy as np
import pytest

import keras_pg

ROOT = pathlib.Path(__file__).parents[1]
SERVING = ROOT / "examples" / "serve_cartpole.py"
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {SERVING})
PAGES = sorted((ROOT / "docs" / "algorithms").glob("[a-z]*.md"))


@pytest.fixture
def short(tmp_path, monkeypatch):
    """An empty directory; agents that learn in Python, little and seldom.

    `fit` has two small iterations of one gradient step each, `evaluate` two episodes, unless it is
    given the number of environments.
    """
    fit, compile = keras_pg.Agent.fit, keras_pg.Agent.compile
    evaluate = keras_pg.Agent.evaluate

    def short_fit(agent, env, *, total_timesteps=None, **arguments):
        for name in ("update_epochs", "critic_epochs", "num_minibatches", "cg_iters"):
            if hasattr(agent, name):
                setattr(agent, name, 1)
        arguments |= {"num_steps": 16, "epochs": 2, "steps_per_epoch": 1}
        return fit(agent, env, **arguments)

    def eager_compile(agent, *arguments, **keyword_arguments):
        in_python = {"run_eagerly": True, "steps_per_execution": 1}
        compile(agent, *arguments, **{**keyword_arguments, **in_python})

    def short_evaluate(agent, env=None, episodes=2, **arguments):
        return evaluate(
            agent, env, episodes if "num_envs" in arguments else min(episodes, 2), **arguments
        )

    statistics = keras_pg.diagnostics.gradient_statistics

    def short_statistics(agent, env, *, advantage=None, **arguments):
        num_envs = max(2, agent.group_size)
        return statistics(
            agent, env, advantage=advantage, rollouts=2, num_envs=num_envs, num_steps=16
        )

    monkeypatch.setattr(keras_pg.diagnostics, "gradient_statistics", short_statistics)
    monkeypatch.setattr(keras_pg.Agent, "evaluate", short_evaluate)
    monkeypatch.setattr(keras_pg.Agent, "fit", short_fit)
    monkeypatch.setattr(keras_pg.Agent, "compile", eager_compile)
    monkeypatch.chdir(tmp_path)


def test_the_code_of_readme_runs(short):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    observations = np.zeros((3, 4), np.float32)
    names = {"observations": observations, "observation": observations[0]}
    for code in blocks:
        exec(code, names)
    assert len(blocks) == 2
    assert names["actions"].shape == (3,) and names["action"].shape == ()
    assert isinstance(keras.models.load_model("cartpole.keras"), keras_pg.PPO)
    assert pathlib.Path("policies/cartpole/1/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:EnvPool seeds are fixed")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_run(path, short):
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.slow
def test_the_example_of_serving_swaps_versions_beside_older_versions_and_another_server(
    short, capsys
):
    pathlib.Path("policies/cartpole/7").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        for port in (8500, 8501):
            with contextlib.suppress(OSError):  # somebody listens there already
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        runpy.run_path(str(SERVING), run_name="__main__")
    assert re.findall(r"^version (\d+): [1-9]", capsys.readouterr().out, re.MULTILINE) == ["8", "9"]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_results_on_a_page_are_those_that_are_stored(path):
    stored = (ROOT / "benchmarks" / "results" / "algorithms.md").read_text().splitlines()
    tables = re.findall(
        r"^\| (?:algorithm|environment \| steps \| published) \|.*\n(?:\|.*\n)+",
        path.read_text(),
        re.MULTILINE,
    )
    assert tables
    assert not set("".join(tables).splitlines()) - set(stored)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_lines_of_code_that_a_page_quotes_are_there(path):
    """Those of the table beside the pseudocode, but for how they are broken."""
    sources = " ".join(p.read_text() for p in sorted((ROOT / "keras_pg").rglob("*.py")))
    table = path.read_text().partition("## The algorithm and its lines")[2].partition("\n## ")[0]
    quoted = re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\|.*\|$", table, re.MULTILINE)))
    assert len(quoted) > 5
    squeezed = re.sub(r"\s", "", sources)
    for line in quoted:
        if not (ROOT / "keras_pg" / line).exists():
            assert re.sub(r"\s", "", line.replace("\\|", "|")) in squeezed, line
