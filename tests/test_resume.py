"""The same seed gives the same bits, in another process and after a resume."""

import subprocess
import sys
import textwrap

PRELUDE = """
    import hashlib, os, signal, sys
    import keras, keras_pg

    def digest(agent):
        state = [*agent.variables, *agent.optimizer.variables, *agent.critic_optimizer.variables]
        return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state)).hexdigest()

    def make(jit_compile=True):
        agent = keras_pg.PPO(
            keras_pg.mlp((16,), seed=6), keras_pg.mlp((16,), seed=7),
            num_minibatches=4, update_epochs=2, normalize_rewards=True, seed=5, target_kl=0.05
        )
        agent.compile(
            keras.optimizers.Adam(1e-3), keras.optimizers.Adam(3e-3), jit_compile=jit_compile
        )
        return agent

    def fit(agent, epochs=1, **arguments):
        agent.fit("Pendulum-v1", num_envs=2, num_steps=32, epochs=epochs, steps_per_epoch=2,
                  verbose=0, **arguments)
"""


def start(body, *arguments):
    script = textwrap.dedent(PRELUDE) + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_lines(process, count=1, returncode=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == returncode, err
    return out.split()[-count:]


def test_same_seed_and_resuming_are_bit_equal_across_processes(tmp_path):
    """Two processes agree after 3 updates; N, save, load elsewhere, N more is N and N more."""
    both = """
        agent = make()
        fit(agent)
        print(digest(agent))
        agent.save(sys.argv[1])
        fit(agent)
        print(digest(agent))
    """
    first = start(both, tmp_path / "first.keras")
    second = start(both, tmp_path / "second.keras")
    halfway, end = last_lines(first, 2)
    assert [halfway, end] == last_lines(second, 2)
    assert halfway != end
    resumed = start(
        """
        agent = keras.models.load_model(sys.argv[1])
        print(digest(agent))
        fit(agent)
        print(digest(agent))
        """,
        tmp_path / "first.keras",
    )
    assert last_lines(resumed, 2) == [halfway, end]


def test_backup_and_restore_after_kill_loses_at_most_an_epoch(tmp_path):
    body = """
        class Kill(keras.callbacks.Callback):
            batches = 0
            def on_train_batch_end(self, batch, logs=None):
                self.batches += 1
                if sys.argv[2] == "kill" and self.batches == 6:  # epoch 3 ends, not backed up
                    os.kill(os.getpid(), signal.SIGKILL)

        agent = make(jit_compile=False)
        kill = Kill()
        fit(agent, 4, callbacks=[keras.callbacks.BackupAndRestore(sys.argv[1]), kill])
        print(kill.batches, agent.iteration.numpy(), digest(agent))
    """
    last_lines(start(body, tmp_path / "backup", "kill"), returncode=-9)
    batches, iterations, state = last_lines(start(body, tmp_path / "backup", "resume"), 3)
    assert (batches, iterations) == ("4", "8")
    uninterrupted = """
        agent = make(jit_compile=False)
        fit(agent, 2)
        fit(agent, 4, initial_epoch=2)
        print(digest(agent))
    """
    assert last_lines(start(uninterrupted)) == [state]
