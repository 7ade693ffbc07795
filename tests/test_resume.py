"""The same seed gives the same bits, in another process and after a resume."""

import subprocess
import sys

import resuming


def run(*arguments):
    """The words that another process prints, and the code with which it ends."""
    process = subprocess.run(
        [sys.executable, resuming.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    return process.stdout.split(), process.returncode, process.stderr


def test_same_seed_and_resuming_are_bit_equal_across_processes(tmp_path):
    """Two processes agree; N updates, save, load in another process, N more is N and N more."""
    halfway, end = resuming.train(tmp_path / "first.keras")
    assert halfway != end
    words, returncode, error = run("resume,train", tmp_path / "first.keras")
    assert returncode == 0, error
    assert words == [halfway, end] * 2


def test_backup_and_restore_after_kill_loses_at_most_an_epoch(tmp_path):
    assert run("die", tmp_path / "backup")[1] == -9
    batches, iterations, state = resuming.fit_with_backup(tmp_path / "backup")
    assert (batches, iterations) == (4, 8)
    uninterrupted = resuming.make(jit_compile=False)
    resuming.fit(uninterrupted, 2)
    resuming.fit(uninterrupted, 4, initial_epoch=2)
    assert resuming.digest(uninterrupted) == state
