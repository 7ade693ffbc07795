"""What `fit` and `evaluate` print."""

import contextlib
import io
import re

import keras
import pytest

import keras_pg
from keras_pg.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(output, columns=None, monkeypatch=None, **arguments):
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    agent = keras_pg.PPO(keras_pg.mlp((4,), seed=0), update_epochs=1, num_minibatches=1, seed=0)
    agent.compile(run_eagerly=True)
    with contextlib.redirect_stdout(output):
        settings = {"epochs": 2, "steps_per_epoch": 2, "num_steps": 32, **arguments}
        agent.fit("CartPole-v1", **settings)
    return output.getvalue()


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_in_a_file_an_epoch_is_one_line_with_every_metric(verbose):
    text = printed(io.StringIO(), verbose=verbose)
    lines = text.splitlines()
    assert len(lines) == 2 and not re.search("[\b\r\x1b]", text)
    assert re.match(
        r"Epoch 2/2 - 2/2 - \d+s - episode_return: [\d.]+ - env_steps: 1024 -", lines[1]
    )
    assert "explained_variance: " in lines[1] and lines[1].endswith("nonfinite_updates: 0")


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_an_epoch_is_one_line_that_fits(columns, monkeypatch):
    text = printed(Terminal(), columns, monkeypatch)
    assert "\b" not in text and "\x1b" not in text
    lines = text.splitlines()
    for line in lines:
        assert all(len(drawn) < columns for drawn in line.split("\r"))
    last = text.rstrip("\n").split("\n")[-1].split("\r")[-1]
    assert re.match(r"Epoch 2/2 - 2/2 - \d+s - episode_return: [\d.]+ - env_steps: 1024", last)


def test_a_shorter_line_leaves_nothing_of_a_longer_one_before(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    bar, output = ProgressBar(), Terminal()
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 1})
    with contextlib.redirect_stdout(output):
        bar.on_epoch_begin(0)
        bar._draw("a title that is long", {"loss": 1.0})
        bar._draw("a title", {})
    long, short = output.getvalue().split("\r")[1:]
    assert len(short) == len(long) and short.strip() == "a title"


def test_nothing_is_printed_where_that_is_asked_for():
    assert printed(io.StringIO(), verbose=0) == ""


def test_a_progress_bar_of_the_users_own_takes_its_place():
    class Own(keras.callbacks.ProgbarLogger):
        def on_epoch_end(self, epoch, logs=None):
            print("own", epoch)

        def on_epoch_begin(self, epoch, logs=None):
            """Nothing."""

        def on_train_batch_end(self, batch, logs=None):
            """Nothing."""

    assert printed(io.StringIO(), callbacks=[Own()]) == "own 0\nown 1\n"


def test_evaluation_is_one_line(capsys):
    agent = keras_pg.A2C(keras_pg.mlp((4,), seed=0), seed=0)
    agent.evaluate("CartPole-v1", 2, num_envs=1)
    line = capsys.readouterr().out
    assert re.fullmatch(r"Evaluation - \d+s - episode_return: \S+ - episode_length: \S+\n", line)


def test_without_interactive_logging_lines_go_to_the_log(caplog):
    keras.config.disable_interactive_logging()
    try:
        with caplog.at_level("INFO", logger="keras_pg"):
            assert printed(io.StringIO()) == ""
    finally:
        keras.config.enable_interactive_logging()
    assert any(record.message.startswith("Epoch 2/2") for record in caplog.records)
