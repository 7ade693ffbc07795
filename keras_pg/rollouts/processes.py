"""Environments that are stepped each in a process of its own.

Processes are forked: a new interpreter would import the user's script again, and TensorFlow with
it. Of a forked process three things are known to go wrong, and none of them here. Python's garbage
collector would destroy TensorFlow's objects, which wait for threads that only the parent has: what
is inherited is never collected. Handlers of signals are the parent's: they are reset. A process
whose parent was killed waits for ever: this one watches its parent.
"""

import contextlib
import gc
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import threading
import time
import traceback
import warnings

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from keras_pg import envs
from keras_pg.rollouts.checking import EnvRow, ObservationRows
from keras_pg.rollouts.closing import raise_first
from keras_pg.rollouts.separate import check_is_env, shared

# What a process answers when all went well; otherwise it answers with an exception.
_DONE = b""
# To close its environment in, before a process ends itself or is ended.
_GRACE_SECONDS = 5.0


class ProcessVectorEnv(VectorEnv):
    """Steps each environment in a process of its own, for a collector.

    It never resets by itself, gives no infos, and returns arrays that the next call overwrites, as
    `SerialVectorEnv` does. There is no time limit on a step: it may be slow.

    Args:
        factories: functions that each return a `gymnasium.Env` of its own. The first is called in
            this process too, to learn the spaces; that environment is closed at once.

    Attributes:
        resting: bool [N], environments that a step leaves as they are; none at first.

    Raises:
        TypeError: a factory returns no `gymnasium.Env`.
        ValueError: a factory returns, in each process, one environment that was made before. It
            was closed in this process, and copies of it would share open files and connections.
        RuntimeError: a process has died.
    """

    def __init__(self, factories):
        self.closed = True
        self._owner, self._pending = os.getpid(), set()
        self._processes, self._pipes, self._polls, self._handles = [], [], [], []
        n = self.num_envs = len(factories)
        first = check_is_env(factories[0]())
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        self.observation_space = batch_space(first.observation_space, n)
        self.action_space = batch_space(first.action_space, n)
        self.render_mode = first.render_mode
        self.metadata = {**first.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        first.close()
        if isinstance(first.unwrapped, envs.NativeSingleEnv):
            raise ValueError(
                "A native environment runs in TensorFlow, which does not work in a process that "
                'was forked. Give the keras_pg.envs environment itself, without "async".'
            )
        self.resting = np.zeros(n, bool)
        self._rows = ObservationRows(first.observation_space)
        self._observations = self._rows.empty(n, _shared_memory)
        self._rewards = _shared_memory((n,), np.float64)
        self._terminated, self._truncated = (_shared_memory((n,), bool) for _ in range(2))
        self.closed = False
        try:
            self._fork(factories, first)
            raise_first(list(filter(None, map(self._receive, range(n)))))
        except BaseException as error:
            try:
                self.close()
            except Exception as second:
                error.add_note(f"Ending its processes failed too: {second!r}")
            raise

    def _fork(self, factories, first):
        context = multiprocessing.get_context("fork")
        this = _handle(os.getpid())
        with _collecting_nothing() as collects, warnings.catch_warnings():
            # Python 3.12 and later warn of what the head of this file is about.
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            for i, factory in enumerate(factories):
                pipe, other_end = context.Pipe()
                arguments = (self._serve, i, factory, first, other_end, [*self._pipes, pipe])
                process = context.Process(
                    target=_work,
                    args=(this, collects, *arguments),
                    name=f"environment {i}",
                    daemon=True,
                )
                process.start()
                other_end.close()
                poll, handle = select.poll(), _handle(process.pid)
                poll.register(pipe.fileno(), select.POLLIN)
                if handle is not None:
                    poll.register(handle, select.POLLIN)
                    self._handles.append(handle)
                self._processes.append(process)
                self._pipes.append(pipe)
                self._polls.append(poll)
                self._pending.add(i)
        if this is not None:
            os.close(this)

    def _serve(self, i, factory, first, pipe):
        """What process i does until it is told to close its environment, or nobody is there."""
        env, row = None, None
        try:
            made = check_is_env(factory())
            if made.unwrapped is first.unwrapped:
                # It was closed, and copies of it would share its files and connections.
                raise shared(made.unwrapped, "its spaces, closed since, and for every process")
            env = made
            self._check_same_spaces(env, i)
            arrays = self._observations, self._rewards, self._terminated, self._truncated
            row = EnvRow(env, i, self._rows, *arrays)
            answer = _DONE
        except BaseException as error:
            answer = _packed(error)
        while True:
            try:
                pipe.send_bytes(answer)
                command, arguments = pipe.recv()
            except (EOFError, OSError):
                command = "close"
            try:
                if command == "close":
                    if env is not None:
                        env.close()
                elif command == "step":
                    row.step(*arguments)
                else:
                    row.reset(*arguments)
                answer = _DONE
            except BaseException as error:
                answer = _packed(error)
            if command == "close":
                with contextlib.suppress(OSError):
                    pipe.send_bytes(answer)
                return

    def _check_same_spaces(self, env, i):
        for name, expected, found in (
            ("observations", self.single_observation_space, env.observation_space),
            ("actions", self.single_action_space, env.action_space),
        ):
            if expected != found:
                raise ValueError(
                    f"Environment {i} has {name} of {found}, environment 0 of {expected}: all "
                    "must have the same."
                )

    def _ask(self, requests):
        """Sends {environment: (command, arguments)}, waits for all, and raises the first error."""
        for i, request in requests.items():
            # If it is gone, receiving tells why.
            with contextlib.suppress(OSError):
                self._pipes[i].send(request)
            self._pending.add(i)
        raise_first(list(filter(None, map(self._receive, requests))))

    def _receive(self, i):
        """Waits for the answer of environment i; returns the exception that it is, or None."""
        pipe, answer = self._pipes[i], None
        ready = [descriptor for descriptor, _ in self._polls[i].poll()]
        if pipe.fileno() in ready:
            with contextlib.suppress(EOFError, OSError):
                answer = pipe.recv_bytes()
        self._pending.discard(i)
        if answer is None:
            return self._death(i)
        return pickle.loads(answer)() if answer else None

    def _death(self, i):
        process = self._processes[i]
        process.join(_GRACE_SECONDS)
        code = process.exitcode
        if code is None:
            how = "does not answer any more"
        elif code < 0:
            names = {number.value: number.name for number in signal.Signals}
            how = f"was ended by {names.get(-code, f'signal {-code}')}"
            if -code == signal.SIGKILL:
                how += " (which is how Linux ends processes when memory runs out)"
            elif -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE):
                how += " (a crash in native code of the environment)"
        else:
            how = f"ended with exit code {code}"
        return RuntimeError(f"Environment {i} is lost: its process, {process.pid}, {how}.")

    def reset(self, *, seed=None, options=None):
        """Starts new episodes: in all environments, or where `options["reset_mask"]` is True."""
        options = dict(options or {})
        mask = options.pop("reset_mask", np.ones(self.num_envs, bool))
        if seed is None or isinstance(seed, int):
            seed = [None if seed is None else seed + i for i in range(self.num_envs)]
        self._ask({i: ("reset", (seed[i], options or None)) for i in np.flatnonzero(mask).tolist()})
        return self._observations, {}

    def step(self, actions):
        """Steps the environments that do not rest; of the others, their latest step again."""
        resting = self.resting.tolist()
        self._ask({i: ("step", (a,)) for i, a in enumerate(actions) if not resting[i]})
        return self._observations, self._rewards, self._terminated, self._truncated, {}

    def close(self, **kwargs):
        """Closes the environments and ends their processes, once.

        Environments in the middle of a step finish it first. A second interrupt ends them at once.
        """
        if self.closed or os.getpid() != self._owner:
            return
        self.closed = True
        try:
            for i in list(self._pending):
                self._receive(i)
            living = [i for i, process in enumerate(self._processes) if process.is_alive()]
            errors = []
            for i in living:
                with contextlib.suppress(OSError):
                    self._pipes[i].send(("close", ()))
            for i in living:
                error = self._receive(i)
                errors += [error] if error is not None else []
            for process in self._processes:
                process.join(_GRACE_SECONDS)
        except BaseException:
            for process in self._processes:
                process.kill()
            raise
        finally:
            self._release()
        raise_first(errors)

    def _release(self):
        """Ends what is still there, such as a process with a thread that does not return."""
        for process in self._processes:
            process.terminate()
            process.join(_GRACE_SECONDS)
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        for handle in self._handles:
            os.close(handle)


# ----------------------------------------------------------------------------------- the processes


def _shared_memory(shape, dtype):
    """Zeros that a process and those forked from it share."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    buffer = mmap.mmap(-1, max(count * dtype.itemsize, 1))
    return np.frombuffer(buffer, dtype, count).reshape(shape)


def _handle(pid):
    """A file descriptor that is readable when the process has ended; None where there are none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


@contextlib.contextmanager
def _collecting_nothing():
    """No garbage collection while processes are forked; gives whether there is any otherwise."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield collects
    finally:
        if collects:
            gc.enable()


def _work(parent, collects, serve, i, factory, first, pipe, others):
    """The body of a process, given a handle of its parent and ends of pipes that are not its."""
    gc.freeze()
    if collects:
        gc.enable()
    # An interrupt at the terminal reaches all processes: the parent closes environments in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    for other in others:
        other.close()
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    serve(i, factory, first, pipe)


def _end_after(parent):
    """Ends this process when its parent has ended, even by SIGKILL, with time to close."""
    if parent is None:
        multiprocessing.parent_process().join()
    else:
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


class _RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text; its cause in this one."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text

    def __str__(self):
        return f'\n"""\n{self.text}"""'


class _Packed:
    """An exception on its way between processes; called, it is the exception again."""

    def __init__(self, error):
        self._text = "".join(traceback.format_exception(error))
        self._parts = type(error), error.args, dict(error.__dict__)
        self._error = error

    def without_error(self):
        """The same, of its class and arguments: some exceptions cannot be made from those alone."""
        self._error = None
        return self

    def __call__(self):
        error = self._error
        if error is None:
            kind, arguments, attributes = self._parts
            error = kind.__new__(kind, *arguments)
            error.args = arguments
            error.__dict__.update(attributes)
        error.__cause__ = _RemoteTraceback(self._text)
        return error


def _packed(error):
    """An exception as bytes: itself, or what can be said of it."""
    for attempt in (lambda: _Packed(error), lambda: _Packed(error).without_error()):
        with contextlib.suppress(Exception):
            packed = pickle.dumps(attempt())
            if type(pickle.loads(packed)()) is type(error):
                return packed
    said = RuntimeError(f"{type(error).__name__}: {error}")
    for note in getattr(error, "__notes__", ()):
        said.add_note(note)
    packed = _Packed(said)
    packed._text = "".join(traceback.format_exception(error))
    return pickle.dumps(packed)
