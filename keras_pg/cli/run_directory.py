"""The directory of a training run, and what is written there."""

import contextlib
import csv
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import keras

from keras_pg import provenance, versions
from keras_pg.files import replacing


class RunDirectory(keras.callbacks.Callback):
    """Makes the directory of a run, and keeps `settings.json` there true.

    As a callback it writes the settings when training begins. `recording` completes them whatever
    ends the run.

    Args:
        path: a new or empty directory; None for the next number in `runs/ENV`.
        env: id of the environment.
        settings: what is known of the run before it begins.

    Raises:
        FileExistsError: the directory holds files.
    """

    def __init__(self, path: pathlib.Path | None, env: str, settings: dict[str, Any]):
        super().__init__()
        self._begun = False
        self._made = [] if path is None or path.exists() else [path]
        if path is None:
            path = _next_run(env)
            self._made = [path, path.parent]
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise FileExistsError(f"{path} holds files already. Give --output a new directory.")
        self.settings = {
            "status": "running",
            **settings,
            "versions": provenance.library_versions(),
            "git_commit": {
                "keras_pg": provenance.code_commit(),
                "working_directory": provenance.git_commit(),
            },
        }

    def on_train_begin(self, logs=None):
        self._begun = True
        self.write()

    def write(self, **settings: Any) -> None:
        """Writes `settings.json` anew, with these settings beside those before."""
        self.settings |= settings
        with replacing(self.path / "settings.json") as temporary:
            temporary.write_text(json.dumps(self.settings, indent=2, default=repr) + "\n")

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Says in the settings how the block ended; removes a directory in which nothing began."""
        try:
            yield
        except BaseException as error:
            if self._begun:
                said = f"{type(error).__name__}: {error}".removesuffix(": ")
                with contextlib.suppress(OSError):  # what ended the run is the error to see
                    self.write(status=said)
            else:
                with contextlib.suppress(OSError):  # other runs are beside it
                    for path in self._made:
                        path.rmdir()
            raise
        self.write(status="completed")

    @contextlib.contextmanager
    def keeping(self, agent: keras.Model) -> Iterator[None]:
        """Saves the agent, and how long it learnt, whatever ends the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._begun:
                seconds, file = round(time.perf_counter() - start, 1), self.path / "agent.keras"
                agent.save(file)
                steps = int(agent.env_steps.numpy())
                print(f"Agent after {steps} steps: {file}", file=sys.stderr)
                self.write(training_seconds=seconds, env_steps=steps)


def _next_run(env):
    while True:
        with contextlib.suppress(FileExistsError):  # another run has just taken that number
            path = versions.next_version(pathlib.Path("runs") / env)
            path.mkdir(parents=True)
            return path


class HistoryFile(keras.callbacks.Callback):
    """Writes the logs of all epochs as CSV, renewed whole after each epoch.

    Keras's `CSVLogger` takes its columns from the first epoch, and appends: a full disk cuts a row.
    Here a column may begin later, and is empty before.

    Args:
        path: file to write; its directory must exist.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path = path
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **(logs or {})})
        names = sorted({name for row in self.rows for name in row} - {"epoch"})
        with replacing(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *names])
            writer.writeheader()
            writer.writerows(self.rows)
