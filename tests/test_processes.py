"""Facts about environments in processes of their own: none hangs, none is left, all errors come."""

import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import keras_pg
from environments import Clockwork, Scripted
from keras_pg.rollouts import make_vector_env
from keras_pg.rollouts.processes import ProcessVectorEnv

ROOT = pathlib.Path(__file__).parents[1]


def fit(agent, env, **options):
    sizes = {"num_envs": 2, "num_steps": 8, "epochs": 1, "steps_per_epoch": 2, "verbose": 0}
    return agent.fit(env, **{"vectorization": "async", **sizes, **options})


def agent_without_graph():
    agent = keras_pg.A2C(seed=0)
    agent.compile(run_eagerly=True)
    return agent


class Interrupted(Exception):
    """An exception whose arguments are not those it is made from."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")
        self.code = code


def raising(error):
    """A factory of environments of which the one seeded with 1 raises in its fourth step."""

    def step(answer):
        raise error

    return lambda: Scripted(step=step)


# ------------------------------------------------------------------------------------- exceptions


@pytest.mark.parametrize(
    "error",
    [
        KeyError("joint 7"),
        SystemExit("window closed"),
        SystemExit(3),
        KeyboardInterrupt(),
        OSError(2, "no such device"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        Interrupted(code=5),
        StopIteration("over"),
        EOFError("the simulator hung up"),
    ],
    ids=repr,
)
def test_an_exception_in_step_reaches_the_caller_of_fit_as_it_is(error):
    raised = {}
    for vectorization in ("sync", "async"):
        with pytest.raises(type(error)) as caught:
            fit(agent_without_graph(), raising(error), vectorization=vectorization)
        assert type(caught.value) is type(error) and caught.value.args == error.args
        assert str(caught.value) == str(error)
        assert getattr(caught.value, "code", None) == getattr(error, "code", None)
        raised[vectorization] = caught.value
        action, stepping = caught.value.__notes__[-2:]
        assert action.startswith("Environment 1 raised it when given the action ")
        assert action.endswith("(int) of Discrete(2).") and stepping.startswith("While stepping")
        error.__notes__.clear()
    # What Python prints has the lines of the environment in the other process.
    assert "in step\n    raise error\n" in str(raised["async"].__cause__)
    assert not multiprocessing.active_children()


def test_an_exception_that_cannot_be_sent_is_told_in_words():
    class Local(Exception):
        pass

    with pytest.raises(RuntimeError, match=r"Local: lost \(a lock\)") as caught:
        fit(agent_without_graph(), raising(Local("lost (a lock)")))
    assert "raise error" in str(caught.value.__cause__)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_error_in_step_is_not_replaced_by_one_in_close(vectorization):
    class Bad(Scripted):
        def step(self, action):
            raise ValueError("the true cause")

        def close(self):
            if self.t is not None and self.faulty:
                raise OSError("close failed")

    with pytest.raises(ValueError, match="the true cause") as caught:
        fit(agent_without_graph(), Bad, vectorization=vectorization)
    assert any("OSError: close failed" in note for note in caught.value.__notes__)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_error_in_close_alone_is_raised_after_all_were_closed(vectorization, tmp_path):
    class Bad(Scripted):
        def close(self):
            if self.faulty:
                raise OSError("close failed")
            (tmp_path / f"{os.getpid()} {id(self)}").touch()

    env, _ = make_vector_env(Bad, 3, vectorization)
    env.reset(seed=0)
    before = len(list(tmp_path.iterdir()))
    with pytest.raises(OSError, match="close failed"):
        env.close()
    assert len(list(tmp_path.iterdir())) == before + 2
    env.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_error_in_the_factory_is_raised_as_it_is(vectorization):
    made = []

    def make():
        # In the process that the test is in, and then in another one.
        if len(made) == 1:
            raise LookupError("no licence")
        made.append(Scripted())
        return made[-1]

    with pytest.raises(LookupError, match="no licence"):
        make_vector_env(make, 3, vectorization)
    assert not multiprocessing.active_children()


def test_environments_of_other_spaces_are_named():
    made = []

    def make():
        made.append(None)
        return Scripted() if len(made) == 1 else Clockwork()

    with pytest.raises(ValueError, match=r"Environment 0 has observations of Box\(-3.*of Box\(-1"):
        make_vector_env(make, 2, "async")


# ------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda: os._exit(7), "ended with exit code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL .*memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "was ended by SIGSEGV .*native code"),
    ],
)
def test_a_process_that_dies_is_an_error_that_says_which_and_how(end, said):
    def step(answer):
        end()

    agent = agent_without_graph()
    with pytest.raises(RuntimeError, match=rf"Environment 1 is lost: its process, \d+, {said}"):
        fit(agent, lambda: Scripted(step=step))
    assert not multiprocessing.active_children()
    fit(agent, Scripted)
    assert int(agent.iteration) == 2


def test_a_process_that_dies_while_nobody_asks_is_told_of_at_the_next_step():
    env = ProcessVectorEnv([Scripted] * 2)
    env.reset(seed=0)
    env._processes[0].kill()
    env._processes[0].join()
    with pytest.raises(RuntimeError, match=r"Environment 0 is lost: .* SIGKILL"):
        env.step([0, 0])
    env.close()
    assert not multiprocessing.active_children()


def test_a_thread_that_an_environment_leaves_does_not_keep_its_process(monkeypatch):
    monkeypatch.setattr("keras_pg.rollouts.processes._GRACE_SECONDS", 0.1)

    class Threaded(Scripted):
        def reset(self, **arguments):
            threading.Thread(target=threading.Event().wait).start()
            return super().reset(**arguments)

    env = ProcessVectorEnv([Threaded])
    env.reset()
    env.close()
    assert not multiprocessing.active_children()


def test_an_interrupt_of_the_terminal_is_left_to_this_process():
    env = ProcessVectorEnv([Scripted] * 2)
    for process in env._processes:
        os.kill(process.pid, signal.SIGINT)
    env.reset(seed=0)
    env.step([0, 0])
    env.close()
    assert [process.exitcode for process in env._processes] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("doing", ["waits", "steps"])
def test_processes_end_when_their_parent_is_killed(doing, tmp_path):
    script = f"""
        import os, signal, time
        import gymnasium, numpy as np
        from keras_pg.rollouts import make_vector_env

        class Sleeping(gymnasium.Env):
            observation_space = gymnasium.spaces.Discrete(2)
            action_space = gymnasium.spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                print(os.getpid(), flush=True)
                return 0, {{}}

            def step(self, action):
                print("stepping", flush=True)
                while True:
                    time.sleep(1)

        env, _ = make_vector_env(Sleeping, 2, "async")
        env.reset(seed=0)
        print("ready", flush=True)
        if {doing == "steps"}:
            env.step([0, 0])
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    lines = [process.stdout.readline().strip() for _ in range(3 + 2 * (doing == "steps"))]
    workers = [os.pidfd_open(int(line)) for line in lines if line.isdigit()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    # The pipe to standard output ends when the last of them has.
    assert process.stdout.read() == ""
    for worker in workers:
        os.close(worker)


# --------------------------------------------------------------------------------- garbage, memory


class Waiting:
    """As TensorFlow's objects are: to be destroyed it needs a thread that a fork does not have."""

    def __init__(self):
        self.asked, self.answered = threading.Event(), threading.Event()
        self.cycle = self
        threading.Thread(target=self._answer, args=(self.asked, self.answered), daemon=True).start()

    @staticmethod
    def _answer(asked, answered):
        asked.wait()
        answered.set()

    def __del__(self):
        self.asked.set()
        self.answered.wait()


class Collecting(Scripted):
    """Collects garbage in each step, as wrappers of simulators that leak do."""

    def step(self, action):
        gc.collect()
        return super().step(action)


def test_garbage_of_the_parent_is_not_collected_in_other_processes():
    gc.disable()
    try:
        Waiting()  # garbage at once, but not collected here
        env = ProcessVectorEnv([Collecting] * 2)
    finally:
        gc.enable()
    env.reset(seed=0)
    for _ in range(3):
        env.step([0, 0])
    env.close()
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_an_environments_own_garbage_is_collected():
    class Reporting(Scripted):
        def step(self, action):
            observation, _, *rest = super().step(action)
            cycle = []
            cycle.append(cycle)
            del cycle
            return observation, float(gc.isenabled() and gc.collect() > 0), *rest

    env = ProcessVectorEnv([Reporting] * 2)
    env.reset(seed=0)
    rewards = env.step([0, 0])[1]
    np.testing.assert_array_equal(rewards, [1.0, 1.0])
    env.close()


def test_a_native_environment_is_not_forked():
    def make():
        return keras_pg.envs.NativeSingleEnv(keras_pg.envs.CartPole())

    with pytest.raises(ValueError, match="TensorFlow, which does not work in a process that was"):
        make_vector_env(make, 2, "async")


# -------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("algorithm", [keras_pg.A2C, keras_pg.REINFORCE])
def test_processes_train_as_one_process_does(algorithm):
    weights = []
    for vectorization in ("sync", "async"):
        agent = algorithm(seed=0)
        agent.compile(jit_compile=False)
        fit(agent, "CartPole-v1", vectorization=vectorization, num_steps=40)
        weights.append(agent.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_environments_that_rest_are_not_stepped():
    env = ProcessVectorEnv([Clockwork] * 3)
    env.reset(seed=5)
    env.resting[1] = True
    for t in range(2):
        observations, rewards, *_ = env.step([0, 0, 0])
        np.testing.assert_array_equal(observations[:, 0], [5, 6, 7])
        np.testing.assert_array_equal(observations[:, 2], [t + 1, 0, t + 1])
        np.testing.assert_array_equal(rewards, [t, 0, t])
    env.close()
