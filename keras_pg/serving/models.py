"""Models, their versions and labels: found by polling, loaded, then swapped."""

import dataclasses
import gc
import logging
import pathlib
import threading
import time

from grpc import StatusCode
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from keras_pg import versions
from keras_pg.saved_model import FORMATS
from keras_pg.serving.servable import Servable
from keras_pg.serving.status import RequestError, invalid

State = ModelVersionStatus.State
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Model:
    """What to serve under a name.

    Args:
        name: as clients call it.
        base_path: directory of the versions.
        policy: `wanted(available versions, labels) → versions`.
        labels: {label: version}; None reads `base_path/labels.json`, as `agent.export` writes it.

    Raises:
        ValueError: `base_path` holds a policy itself, and not versions of one.
    """

    name: str
    base_path: pathlib.Path
    policy: callable
    labels: dict | None = None

    def __post_init__(self):
        if versions.paths(self.base_path):
            return
        for file in FORMATS.values():
            if (self.base_path / file).exists():
                raise ValueError(_no_base(self.base_path, file))

    def current_labels(self):
        return versions.labels(self.base_path) if self.labels is None else self.labels


def _no_base(path, file):
    numbered = path.name.isascii() and path.name.isdigit()
    advice = (
        f"Give the directory above it: {path.parent}"
        if numbered
        else f"Move what it holds into a version, such as {path / '1'}, and give {path}"
    )
    return (
        f"{path} holds {file}, so it is a version of a policy. What is served is a base directory, "
        f"which holds versions. {advice}."
    )


def latest(count=1):
    """The policy of serving the newest versions."""
    return lambda available, labels: set(sorted(available)[-count:])


def specific(numbers):
    """The policy of serving these versions."""
    return lambda available, labels: set(available) & set(numbers)


def every(available, labels):
    """The policy of serving all versions."""
    return set(available)


def newest_and_labelled(available, labels):
    """The policy of serving the newest version and all that have a label."""
    return {max(available), *labels.values()} & set(available) if available else set()


def from_config(config):
    """The `Model` of a `tensorflow.serving.ModelConfig`.

    Raises:
        ValueError: it has no name, no absolute base path, or is of another platform.
    """
    if not config.name:
        raise ValueError(f"A model needs a name: {config}")
    if config.model_platform not in ("", "tensorflow"):
        raise ValueError(
            f'Model {config.name!r} is of platform {config.model_platform!r}; only "tensorflow" '
            "can be served."
        )
    if not pathlib.Path(config.base_path).is_absolute():
        raise ValueError(
            f"Expected model {config.name} to have an absolute path or URI; got base_path()="
            f"{config.base_path}"
        )
    choice = config.model_version_policy
    policies = {
        "all": lambda: every,
        "specific": lambda: specific(choice.specific.versions),
        "latest": lambda: latest(choice.latest.num_versions or 1),
        None: latest,
    }
    policy = policies[choice.WhichOneof("policy_choice")]()
    return Model(
        config.name, pathlib.Path(config.base_path), policy, labels=dict(config.version_labels)
    )


@dataclasses.dataclass
class _Version:
    state: int = State.START
    servable: Servable | None = None
    error: RequestError | None = None
    attempts: int = 0
    retry_at: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Served:
    """What requests see of a model: replaced as a whole, never changed."""

    servables: dict = dataclasses.field(default_factory=dict)  # by version, of those available
    labels: dict = dataclasses.field(default_factory=dict)


class Models:
    """The models that are served.

    `poll` looks for versions, loads what is new and then lets go of what is no longer wanted, so
    that some version serves all the while. Requests in flight keep the version they began with.

    Args:
        models: `Model`s.
        max_num_load_retries: attempts after the first to load a version.
        load_retry_interval: seconds between them.
        servable: keyword arguments of `Servable`.
    """

    def __init__(self, models, *, max_num_load_retries=5, load_retry_interval=60.0, **servable):
        self._max_num_load_retries = max_num_load_retries
        self._load_retry_interval = load_retry_interval
        self._servable = servable
        self._polling = threading.Lock()
        self._models = {}
        self._versions = {}
        self._served = {}
        self.configure(models)

    # -------------------------------------------------------------------------------- requests

    def find(self, name, version=None, label=None):
        """A version's number and `Servable`; without version and label the largest available.

        Raises:
            RequestError: there is none such.
        """
        served = self._served.get(name, _Served())
        if label is not None:
            if label not in served.labels:
                raise invalid(f"Unrecognized servable version label: {label}")
            version = served.labels[label]
        if version is None and served.servables:
            version = max(served.servables)
        if version not in served.servables:
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise RequestError(StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}")
        return version, served.servables[version]

    def status(self, name, version=None):
        """[(version, state, error or None)], the largest version first, also of ended ones.

        Raises:
            RequestError: there is none such.
        """
        entries = self._versions.get(name, {})
        if version is not None:
            if version not in entries:
                raise RequestError(
                    StatusCode.NOT_FOUND, f"Could not find version {version} of model {name}"
                )
            entries = {version: entries[version]}
        if not entries:
            raise RequestError(StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        return [(n, entries[n].state, entries[n].error) for n in sorted(entries, reverse=True)]

    # --------------------------------------------------------------------------------- loading

    def configure(self, models):
        """Serves these models, and no longer those that are not among them, from the next poll.

        Raises:
            ValueError: two of them have one name.
        """
        models = list(models)
        by_name = {model.name: model for model in models}
        if len(by_name) < len(models):
            raise ValueError(f"Two models have one name: {[model.name for model in models]}.")
        self._models = by_name

    def names(self):
        """Names of the models that are configured."""
        return list(self._models)

    def poll(self):
        """Looks once at all base paths, and loads and unloads what has changed."""
        with self._polling:
            for name in {**self._versions, **self._models}:
                model = self._models.get(name)
                if model is None:
                    self._served[name] = _Served()
                    self._unload(name, keep=set())
                    continue
                try:
                    self._poll_model(model, model.current_labels())
                except (OSError, ValueError) as error:
                    _log.warning("Model %s stays as it is: %s", name, error)

    def _poll_model(self, model, labels):
        if not model.base_path.is_dir():  # away for a moment, perhaps: nothing is let go
            raise FileNotFoundError(f"there is no directory {model.base_path}")
        available = versions.paths(model.base_path)
        wanted = model.policy(available, labels)
        entries = self._versions.get(model.name, {})
        for number, entry in entries.items():
            if entry.state == State.END and number not in available:
                entry.error = None  # another version of this number is tried anew
        for number in sorted(wanted):
            entry = entries.get(number)
            if entry is None or (entry.state == State.END and entry.error is None):
                # Others may be going over the dictionary: it is replaced, not changed.
                entry = _Version()
                entries = self._versions[model.name] = {**entries, number: entry}
            if entry.state in (State.START, State.LOADING) and time.monotonic() >= entry.retry_at:
                self._load(model, number, available[number], entry)
        servables = {n: e.servable for n, e in entries.items() if e.state == State.AVAILABLE}
        # A label moves when its new version has been loaded; until then it stays where it was.
        before = self._served.get(model.name, _Served()).labels
        moved = {k: n if n in servables else before.get(k) for k, n in labels.items()}
        moved = {k: n for k, n in moved.items() if n in servables}
        keep = wanted | set(moved.values())
        if servables and wanted and max(wanted) > max(servables):
            keep.add(max(servables))  # until a newer one serves, whatever older ones do
        if servables.keys() & wanted or not wanted:
            servables = {n: servable for n, servable in servables.items() if n in keep}
        self._served[model.name] = _Served(servables, moved)
        self._unload(model.name, keep=servables.keys() | wanted)

    def _load(self, model, number, path, entry):
        entry.state = State.LOADING
        try:
            entry.servable = Servable(path, **self._servable)
        except Exception as error:
            known = isinstance(error, RequestError)
            code, message = (
                (error.code, error.message) if known else (StatusCode.UNKNOWN, repr(error))
            )
            # A new one: that which was raised refers to all that was loaded.
            entry.error = RequestError(code, message)
            entry.attempts += 1
            entry.retry_at = time.monotonic() + self._load_retry_interval
            if entry.attempts > self._max_num_load_retries:
                entry.state = State.END
            _log.error("Model %s, version %s: %s", model.name, number, message)
            return
        entry.error = None
        entry.state = State.AVAILABLE
        _log.info("Model %s, version %s: loaded", model.name, number)

    def _unload(self, name, keep):
        gone = False
        for number, entry in self._versions.get(name, {}).items():
            if number not in keep and entry.state != State.END:
                entry.state, entry.servable, entry.error = State.END, None, None
                gone = True
                _log.info("Model %s, version %s: unloaded", name, number)
        if gone:
            gc.collect()  # a session and its graph refer to each other

    def unavailable(self):
        """{name: why} of the models of which no version can be used."""
        reasons = {}
        for name, model in self._models.items():
            entries = self._versions.get(name, {}).values()
            if not any(entry.state == State.AVAILABLE for entry in entries):
                errors = [e.error.message for e in entries if e.error is not None]
                reasons[name] = errors[-1] if errors else f"no version below {model.base_path}"
        return reasons

    def given_up(self):
        """{name: why} of the models of which no version can be used, nor is tried again."""
        return {
            name: why
            for name, why in self.unavailable().items()
            if (entries := self._versions.get(name))
            and all(entry.state == State.END and entry.error for entry in entries.values())
        }
