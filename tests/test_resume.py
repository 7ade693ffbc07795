"""The same seed gives the same bits, in another process and after a resume."""

import os
import signal
import subprocess
import sys

import pytest

import resuming


def run(*arguments, env=None):
    """The words that another process prints, and the code with which it ends."""
    process = subprocess.run(
        [sys.executable, resuming.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
    )
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    return process.stdout.split(), process.returncode


@pytest.mark.slow
def test_same_seed_and_resuming_are_bit_equal_across_processes(tmp_path):
    """Two processes agree; N updates, save, load in another process, N more is N and N more."""
    halfway, end = resuming.train(tmp_path / "first.keras")
    assert halfway != end
    assert run("resume,train", tmp_path / "first.keras") == ([halfway, end] * 2, 0)


@pytest.mark.slow
def test_what_xla_has_kept_on_disk_gives_the_same_bits(tmp_path):
    """README's flags: the second process loads what the first compiled."""
    flags = f"--tf_xla_persistent_cache_directory={tmp_path / 'xla'}"
    kept = {"TF_XLA_FLAGS": f"{flags} --tf_xla_persistent_cache_device_types=CPU"}
    compiled, loaded = (run("train", tmp_path / "agent.keras", env=kept) for _ in range(2))
    assert list((tmp_path / "xla").iterdir())
    assert compiled == loaded
    assert loaded[0] == list(resuming.train(tmp_path / "other.keras"))


@pytest.mark.slow
def test_backup_and_restore_after_kill_loses_at_most_an_epoch(tmp_path):
    assert run("die", tmp_path / "backup") == ([], -signal.SIGKILL)
    batches, iterations, state = resuming.fit_with_backup(tmp_path / "backup")
    assert (batches, iterations) == (4, 8)
    uninterrupted = resuming.make(jit_compile=False)
    resuming.fit(uninterrupted, 2)
    resuming.fit(uninterrupted, 4, initial_epoch=2)
    assert resuming.digest(uninterrupted) == state
