"""The kit in `export/`: its files are valid, and its README is true."""

import contextlib
import io
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time

import gymnasium
import kubernetes_validate
import numpy as np
import pytest
import tensorflow as tf
import yaml

from clients import free_port, predict_request, rest, states, stubs
from environments import perturbed_agent
from keras_pg import cli, replay, versions
from keras_pg.serving import command as serve_command
from keras_pg.serving import config
from keras_pg.serving.batching import BatchingParameters
from keras_pg.serving.models import Model, Models, latest
from keras_pg.serving.server import Server
from keras_pg.wrappers import ActionMask
from policies import POLICIES
from recorded_models import save_doubling

ROOT = pathlib.Path(__file__).parents[2]
KIT = ROOT / "export"
FLAGS_FILES = KIT / "docker-compose.yml", KIT / "kubernetes" / "deployment.yaml"


MODELS_CONFIG = sys.executable, KIT / "models_config.py"


def models_config(*arguments):
    return subprocess.run([*MODELS_CONFIG, *arguments], capture_output=True, text=True)


# --------------------------------------------------------------------------------------- files


def test_nothing_of_the_kit_imports_keras_pg():
    for path in KIT.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) keras", path.read_text(), re.MULTILINE), path


def test_the_compose_file_follows_its_schema():
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    check = pathlib.Path(sys.executable).with_name(command[0])
    run = subprocess.run([check, *command[1:], FLAGS_FILES[0]], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    services = yaml.safe_load(FLAGS_FILES[0].read_text())["services"]
    mounts = [mount for service in services.values() for mount in service["volumes"]]
    for source in (mount.split(":")[0] for mount in mounts if mount.startswith(".")):
        assert (KIT / source).exists()


def test_the_kubernetes_manifests_follow_their_schemas():
    kustomization = yaml.safe_load((KIT / "kubernetes" / "kustomization.yaml").read_text())
    paths = [KIT / "kubernetes" / name for name in kustomization["resources"]]
    assert set(paths) == set((KIT / "kubernetes").glob("*.yaml")) - {
        KIT / "kubernetes" / "kustomization.yaml"
    }
    for path in paths:
        kubernetes_validate.validate(yaml.safe_load(path.read_text()), "1.32", strict=True)
    (generator,) = kustomization["configMapGenerator"]
    deployment = yaml.safe_load(FLAGS_FILES[1].read_text())["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    mounted = {f"/config/{name}" for name in generator["files"]}
    assert mounted == {arg.partition("=")[2] for arg in container["args"] if "/config/" in arg}
    for name in generator["files"]:
        assert (KIT / "kubernetes" / name).exists()
    # Readiness asks for the model that is configured.
    text = (KIT / "kubernetes" / "models.config").read_text()
    assert container["readinessProbe"]["httpGet"]["path"].split("/")[-1] in text


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, but no cluster")
def test_kustomize_makes_objects_that_follow_their_schemas():
    command = ["kubectl", "kustomize", KIT / "kubernetes"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    objects = {document["kind"]: document for document in yaml.safe_load_all(run.stdout)}
    assert objects.keys() == {"ConfigMap", "Deployment", "PersistentVolumeClaim", "Service"}
    for document in objects.values():
        kubernetes_validate.validate(document, "1.32", strict=True)
    # The deployment mounts what was made of the files.
    made = objects["ConfigMap"]
    assert made["data"] == {name: (KIT / "kubernetes" / name).read_text() for name in made["data"]}
    volumes = objects["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": made["metadata"]["name"]}} in volumes


@pytest.mark.parametrize("path", FLAGS_FILES, ids=lambda path: path.name)
def test_flags_are_known(path):
    document = yaml.safe_load(path.read_text())
    if "services" in document:
        flags = document["services"]["serving"]["command"]
    else:
        flags = document["spec"]["template"]["spec"]["containers"][0]["args"]
    cli.parser().parse_args(["serve", *flags])


@pytest.mark.parametrize("directory", ["config", "kubernetes"])
def test_the_configuration_files_are_read(directory):
    batching = config.read_batching(KIT / directory / "batching.config")
    assert batching.max_batch_size == 64
    assert batching.allowed_batch_sizes == (1, 2, 4, 8, 16, 32, 64)
    path = config.read_monitoring(KIT / directory / "monitoring.config")
    assert path == "/monitoring/prometheus/metrics"
    prometheus = yaml.safe_load((KIT / "config" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == path
    (model,) = config.read_models(KIT / "kubernetes" / "models.config")
    assert model.name == "cartpole"


def test_a_policy_needs_batches_of_the_size_of_its_warm_up(exported):
    base = exported("cartpole")[1].parent

    def server(**options):
        models = Models([Model("policy", base, latest())], max_num_load_retries=0, **options)
        return Server(models, port=None, rest_api_port=0)

    small = BatchingParameters(max_batch_size=32)
    with (
        pytest.raises(RuntimeError, match=r"Task size 64 is larger than maximum .* batch size 32"),
        server(batching=small),
    ):
        pass
    for options in ({"batching": small, "warm_up": False}, {"batching": BatchingParameters(64)}):
        with server(**options) as started:
            assert states(started) == {1: "AVAILABLE"}


@pytest.mark.parametrize("name", POLICIES)
def test_the_example_requests_are_answered_as_over_grpc(name, exported):
    version = exported(name)[1]
    inputs, golden = replay.read_golden(version)
    models = Models([Model("policy", version.parent, latest())])
    with Server(models, port=0, rest_api_port=0) as server, stubs(server) as (service, _):
        request = predict_request("policy", **{key: rows[:2] for key, rows in inputs.items()})
        outputs = service.Predict(request, timeout=30).outputs
        answers = [
            rest(
                server, "/v1/models/policy:predict", (version / "assets.extra" / file).read_bytes()
            )
            for file in ("request.json", "request_columns.json")
        ]
    expected = {key: tf.make_ndarray(tensor) for key, tensor in outputs.items()}
    assert expected.keys() == golden.keys() and [status for status, _ in answers] == [200, 200]
    (_, by_rows), (_, by_columns) = answers
    for key, values in expected.items():
        rows = [row[key] for row in by_rows["predictions"]]
        for found in (rows, by_columns["outputs"][key]):
            np.testing.assert_allclose(np.array(found, values.dtype), values, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_the_clients_play_a_policy_with_action_masks(protocol, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "export" / "clients")
    import play

    env = ActionMask(gymnasium.make("Taxi-v4", max_episode_steps=20))
    agent = perturbed_agent(env.observation_space, env.action_space)
    agent.export(tmp_path / "taxi")
    models = Models([Model("taxi", tmp_path / "taxi", latest())])
    with Server(models, port=0, rest_api_port=0) as server:
        address = f"127.0.0.1:{server.port}"
        if protocol == "REST":
            address = f"http://127.0.0.1:{server.rest_api_port}"
        policy = play.connect(
            address, "taxi", dtype={"observation": "int64", "action_mask": "int8"}
        )
        returns = play.play(policy, env, episodes=2)
    assert returns == play.play(agent.act, env, episodes=2)


@pytest.mark.parametrize("protocol", ["REST", "gRPC"])
def test_a_policy_with_action_masks_is_played_from_the_command_line(
    protocol, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(ROOT / "export" / "clients")
    import play

    def masked_taxi():
        return ActionMask(gymnasium.make("Taxi-v4", max_episode_steps=20))

    spec = gymnasium.envs.registration.EnvSpec("MaskedTaxi-v0", masked_taxi)
    monkeypatch.setitem(gymnasium.registry, "MaskedTaxi-v0", spec)
    env = masked_taxi()
    agent = perturbed_agent(env.observation_space, env.action_space)
    agent.export(tmp_path / "taxi")
    models = Models([Model("taxi", tmp_path / "taxi", latest())])
    with Server(models, port=0, rest_api_port=0) as server:
        address = f"127.0.0.1:{server.port}"
        if protocol == "REST":
            address = f"http://127.0.0.1:{server.rest_api_port}"
        play.main(["MaskedTaxi-v0", address, "taxi", "--episodes", "2"])
    returns = play.play(agent.act, env, episodes=2)
    assert capsys.readouterr().out.startswith(f"MaskedTaxi-v0: {returns}, mean ")


def test_the_grpc_client_says_which_dtypes_it_was_not_given(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "export" / "clients")
    from grpc_client import GrpcPolicy

    policy = GrpcPolicy("127.0.0.1:1", "taxi")
    with pytest.raises(ValueError, match=r"no dtype for \['action_mask'\].* dtype="):
        policy({"observation": [[0.0]], "action_mask": [[1]]})


# ------------------------------------------------------------------------------ models_config


def test_the_configuration_of_bases_with_labels(tmp_path):
    for name in ("a", "b"):
        for version in (1, 12):
            (tmp_path / name / str(version)).mkdir(parents=True)
    versions.label(tmp_path / "a", tmp_path / "a" / "12", ["canary"])
    run = models_config(tmp_path / "a", "--label", "stable=1")
    (tmp_path / "models.config").write_text(run.stdout)
    (model,) = config.read_models(tmp_path / "models.config")
    assert (model.name, model.base_path) == ("a", tmp_path / "a")
    assert model.labels == {"canary": 12, "stable": 1} == versions.labels(tmp_path / "a")
    run = models_config(tmp_path / "a", tmp_path / "b", "--served-from", "/models")
    (tmp_path / "models.config").write_text(run.stdout)
    a, b = config.read_models(tmp_path / "models.config")
    assert [str(a.base_path), str(b.base_path)] == ["/models/a", "/models/b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "has no version directory"),
        (["absent"], "has no version directory"),
        (["base", "--label", "stable=3"], "--label takes NAME=VERSION of [1], got '3'"),
        (["base", "--label", "stable"], "--label takes NAME=VERSION of [1], got ''"),
        (["absent", "--label", "stable=1"], "No such file or directory: 'absent'"),
        (["base", "empty", "--label", "stable=1"], "--label takes one base directory"),
    ],
)
def test_what_cannot_be_configured_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base" / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    run = models_config(*arguments)
    assert run.returncode == 2 and message in run.stderr and not run.stdout
    assert not (tmp_path / "base" / "labels.json").exists()


def test_a_label_of_a_version_that_has_gone_is_refused(tmp_path):
    (tmp_path / "base" / "1").mkdir(parents=True)
    (tmp_path / "base" / "labels.json").write_text('{"stable": 7}')
    run = models_config(tmp_path / "base")
    assert run.returncode == 2 and "label stable is of version 7" in run.stderr


def test_labels_of_an_export_meanwhile_are_not_lost(tmp_path):
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
    with versions.locked(tmp_path):
        process = subprocess.Popen(
            [*MODELS_CONFIG, tmp_path, "--label", "stable=1"], stdout=subprocess.DEVNULL
        )
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        versions.label(tmp_path, tmp_path / "2", ["canary"])
    assert process.wait(30) == 0
    assert versions.labels(tmp_path) == {"canary": 2, "stable": 1}


def test_labels_move_and_go_back_on_a_running_server(tmp_path):
    base, file = tmp_path / "policy", tmp_path / "models.config"
    for version in (1, 2):
        save_doubling(base / str(version), factor=float(version))
    file.write_text(models_config(base, "--label", "stable=1").stdout)
    models = Models(config.read_models(file))

    def reload():
        models.configure(config.read_models(file))

    with Server(
        models, port=None, rest_api_port=0, poll_seconds=0.05, before_poll=reload
    ) as server:
        assert states(server) == {1: "AVAILABLE", 2: "AVAILABLE"}
        for version in (1, 2, 1):
            models_config(base, "--label", f"stable={version}", "--output", file)
            # A refused one leaves the file as it is.
            assert models_config(base, "--label", "stable=9", "--output", file).returncode == 2
            expected = 200, {"predictions": [[1.0 * version, 0.0]]}
            deadline = time.monotonic() + 20
            path = "/v1/models/policy/labels/stable:predict"
            while rest(server, path, {"instances": [[1.0, 0.0]]}) != expected:
                assert time.monotonic() < deadline
                time.sleep(0.02)


# -------------------------------------------------------------------------------------- README


def commands():
    """The commands of README's blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (KIT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


# Their tools need a daemon, or are built and run by test_loader.py.
ELSEWHERE = "docker", "kubectl", "POLICIES=", "export/loader", "./savedmodel_run"


@pytest.mark.skipif(shutil.which("curl") is None, reason="README's commands need curl")
def test_every_command_of_readme_runs(exported, tmp_path, monkeypatch):
    agent, _ = exported("cartpole")
    agent.save(tmp_path / "agent.keras")
    shutil.copytree(KIT, tmp_path / "export")  # a command writes to it
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(KIT / "clients")
    outputs, server = {}, None
    with contextlib.ExitStack() as stack:
        ports = {"8500": free_port(), "8501": free_port()}
        for command in commands():
            if command.startswith(ELSEWHERE):
                continue
            for written, port in ports.items():
                command = command.replace(written, str(port))
            if command.startswith("keras-pg serve"):
                flags = [*command.split()[1:], f"--port={ports['8500']}"]
                flags.append(f"--rest_api_port={ports['8501']}")
                options = cli.parser().parse_args(flags)
                server = stack.enter_context(serve_command.make_server(options))
                continue
            outputs[command] = in_this_process(command, monkeypatch)
            if "models_config" in command and server is not None:
                for label, version in versions.labels(tmp_path / "policies" / "cartpole").items():
                    wait_for_label(server, "cartpole", label, version)
    answers = [json.loads(v) for k, v in outputs.items() if k.startswith("curl -d")]
    assert len(answers) == 3 and all("error" not in answer for answer in answers)
    assert sum("verified" in output for output in outputs.values()) == 3
    assert any(":tensorflow:serving:request_count" in output for output in outputs.values())
    assert versions.labels(tmp_path / "policies" / "cartpole") == {"stable": 1, "canary": 2}
    (model,) = config.read_models(tmp_path / "export" / "kubernetes" / "models.config")
    assert model.labels == {"stable": 1, "canary": 2}
    assert (model.name, str(model.base_path)) == ("cartpole", "/models/cartpole")


KUBECTL = """#!/bin/sh
# One pod, whose /models is $VOLUME.
here() { echo "$*" | sed "s:/models:$VOLUME:g"; }
case $1 in
apply) ;;
get) echo pod/policies-0 ;;
exec) shift 3 && $(here "$@") ;;
cp) cp -r "$2" "$(here "${3#policies-0:}")" ;;
*) exit 1 ;;
esac
"""


def test_the_commands_for_kubernetes_fill_a_new_volume(tmp_path, monkeypatch):
    volume, kubectl = tmp_path / "volume", tmp_path / "bin" / "kubectl"
    for directory in (volume, kubectl.parent, tmp_path / "policies" / "cartpole" / "1"):
        directory.mkdir(parents=True)
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(kubectl.parent), prepend=os.pathsep)
    monkeypatch.setenv("VOLUME", str(volume))
    for command in commands():
        if command.startswith("kubectl"):
            run = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True)
            assert run.returncode == 0, (command, run.stderr)
    assert os.listdir(volume / "cartpole") == ["1"]


def in_this_process(command, monkeypatch):
    """What a command prints; programs in Python are run here, for importing takes seconds."""
    program, *arguments = shlex.split(command)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        if program == "curl":
            run = subprocess.run([program, "-s", *arguments], capture_output=True, check=True)
            print(run.stdout.decode())
        elif program == "keras-pg":
            assert cli.main(arguments) == 0
        else:
            assert program == "python"
            monkeypatch.setattr(sys, "argv", arguments)
            try:
                runpy.run_path(arguments[0], run_name="__main__")
            except SystemExit as ended:
                assert not ended.code, command
    return output.getvalue()


def wait_for_label(server, name, label, version):
    """Until the server gives the label to that version."""
    deadline = time.monotonic() + 20
    path = f"/v1/models/{name}/labels/{label}/metadata"
    while rest(server, path)[1].get("model_spec", {}).get("version") != str(version):
        assert time.monotonic() < deadline
        time.sleep(0.05)
