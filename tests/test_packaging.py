"""The wheel, the import graph, and the import itself."""

import ast
import configparser
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

import keras_pg_cli
from keras_pg import extras

ROOT = pathlib.Path(__file__).parents[1]

# Arrows point down: a module may import those of later layers only.
LAYERS = [
    {"__main__"},
    {"cli.train"},
    {"cli.evaluate", "cli.export", "cli.verify", "cli.serve"},
    {"cli.agents"},
    {"cli.environments", "cli.evaluations", "cli.run_directory"},
    {"cli.__init__"},
    {"serving.__init__", "serving.command"},
    {"serving.config", "serving.server"},
    {"serving.http_protocol", "serving.rest"},
    {"serving.services"},
    {"serving.json_tensors", "serving.metrics", "serving.models"},
    {"serving.servable"},
    {"serving.batching", "serving.json_documents", "serving.protobuf_tensors"},
    {"serving.compression", "serving.ports", "serving.status"},
    {"__init__"},
    {"agents.__init__"},
    {"agents.grpo", "agents.mdpo", "agents.reinforce", "agents.trpo"},
    {"agents.a2c", "agents.npg", "agents.ppo"},
    {"agents.reference"},
    {"agents.agent"},
    {"agents.native_training", "agents.schedule"},
    {"agents.policy_model"},
    {"monitoring"},
    {"progress"},
    {"saved_model", "callbacks", "diagnostics", "testing", "video", "wrappers"},
    {"rollouts.__init__", "rollouts.evaluation", "rollouts.dataset", "rollouts.minibatches"},
    {"rollouts.acting", "rollouts.making", "rollouts.native_env", "rollouts.vector_env"},
    {"rollouts.processes", "rollouts.serial_env"},
    {"rollouts.separate"},
    {"envs.__init__"},
    {
        *("envs.classic_control", "envs.frame_stack", "envs.gymnasium_adapter"),
        *("envs.image_tasks", "envs.small_tasks"),
    },
    {"envs.drawing", "envs.native_env"},
    {"networks", "rollouts.bounds", "rollouts.rollout"},
    {"rollouts.checking"},
    {"advantages", "distributions"},
    {"returns", "normalization"},
    {"encoders", "keras_models", "losses", "randomness", "trust_region"},
    {"provenance", "spaces", "versions", "hyperparameters", "remote", "replay"},
    {"advice", "rollouts.closing"},
    {"_version", "extras", "files"},
]
MATHS = {
    *("advantages", "distributions", "losses", "normalization"),
    *("randomness", "returns", "trust_region"),
}


OURS = {"keras_pg", "keras_pg_cli"}


def modules():
    for path in sorted((ROOT / "keras_pg").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT / "keras_pg").with_suffix("").parts), path


def imports(path):
    """Every module a file imports, as (dotted name, imported name or None)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def own_imports(path, names):
    for module, name in imports(path):
        if module.split(".")[0] != "keras_pg":
            continue
        inner = module.removeprefix("keras_pg").removeprefix(".")
        paths = [f"{inner}.{name}", f"{inner}.{name}.__init__", inner, f"{inner}.__init__"]
        yield next(path.strip(".") for path in paths if path.strip(".") in names)


def test_every_module_has_a_layer_and_imports_only_lower_ones():
    layer_of = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    names = {name for name, _ in modules()}
    assert names == set(layer_of)
    for name, path in modules():
        for imported in own_imports(path, names):
            assert layer_of[imported] > layer_of[name], f"{name} imports {imported}"


def test_maths_modules_import_nothing_but_tensorflow_and_its_kin():
    allowed = {"tensorflow", "tensorflow_probability", "keras", "numpy", "gymnasium", "typing"}
    allowed |= {"keras_pg", "math"}
    for name, path in modules():
        if name in MATHS:
            assert {module.split(".")[0] for module, _ in imports(path)} <= allowed


def test_only_environments_made_or_collected_and_the_adapter_need_the_vector_api():
    users = {
        name
        for name, path in modules()
        if any(module.startswith("gymnasium.vector") for module, _ in imports(path))
    }
    rollouts = {"making", "processes", "separate", "serial_env", "vector_env"}
    assert users == {"envs.gymnasium_adapter", *(f"rollouts.{name}" for name in rollouts)}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_type_marker_only(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"keras_pg", "keras_pg_cli.py"}
    assert "keras_pg/py.typed" in names
    assert sorted(n for n in names if n.endswith(".py")) == sorted(
        ["keras_pg_cli.py", *(str(path.relative_to(ROOT)) for _, path in modules())]
    )
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"keras-pg = keras_pg_cli:main" in zipfile.ZipFile(wheel).read(entry)


def test_the_command_line_starts_from_the_standard_library_alone():
    assert packages_imported_with(ROOT / "keras_pg_cli.py") <= sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["serve", "--help"], ["train"]]
)
def test_help_the_version_and_wrong_arguments_import_nothing_of_tensorflow(arguments):
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted(sys.modules), file=sys.stderr))\n"
        "import keras_pg_cli\n"
        "keras_pg_cli.main()\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == (2 if arguments == ["train"] else 0)
    imported = set(ast.literal_eval(result.stderr.splitlines()[-1]))
    assert "keras_pg_cli" in imported
    assert not imported & {"tensorflow", "keras", "keras_pg", "numpy", "gymnasium", "matplotlib"}


@pytest.fixture
def command(tmp_path):
    """Runs `keras-pg` in a process of its own."""

    def run(*arguments, module="keras_pg_cli", **variables):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        environment |= {"PYTHONPATH": str(ROOT), **variables}
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    return run


@pytest.mark.slow
def test_tensorflow_logs_nothing_in_a_command_unless_asked_to(command):
    arguments = ["train", "CartPole-v1", "--algorithm", "a2c", "--total-timesteps", "40"]
    result = command(*arguments, "--output", "run", "--export", "policies")
    assert result.stderr == "Agent after 40 steps: run/agent.keras\n"
    assert result.returncode == 0 and "verified" in result.stdout
    said = "keras-pg evaluate: There is no agent.keras in ."
    for module in ("keras_pg_cli", "keras_pg"):
        quiet = command("evaluate", ".", "CartPole-v1", module=module)
        assert quiet.returncode == 2 and quiet.stderr.startswith(said)
    loud = command("evaluate", ".", "CartPole-v1", TF_CPP_MIN_LOG_LEVEL="0")
    assert loud.returncode == 2 and "oneDNN" in loud.stderr and said in loud.stderr


def test_only_chatter_is_taken_out_of_what_tensorflow_logs(capfd):
    chatter = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1.2    7 port.cc:153] oneDNN custom operations are on.",
        "2024-01-01 00:00:00.1: I tensorflow/core/util/port.cc:113] oneDNN custom operations",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
        "E0000 00:00:1.2    7 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error: "
        "Failed call to cuInit: UNKNOWN ERROR (303)",
    ]
    errors = [
        "E0000 00:00:1.2    7 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_OUT_OF_MEMORY",
        "F0000 00:00:1.2    7 cpu.cc:1] The TensorFlow library was compiled to use AVX",
        "Traceback (most recent call last):",
    ]
    with pytest.raises(KeyError), keras_pg_cli._without_chatter():
        for line in [*chatter, *errors]:
            os.write(2, f"{line}\n".encode())
        raise KeyError
    assert capfd.readouterr().err.splitlines() == errors


@pytest.mark.slow
def test_another_backend_is_refused_by_a_command_in_a_sentence(command):
    result = command("verify", "nowhere", KERAS_BACKEND="numpy")
    said = 'keras-pg verify: keras_pg needs the TensorFlow backend of Keras, found "numpy"'
    assert result.returncode == 2 and said in result.stderr


def test_what_is_said_of_installing_works_from_a_clone():
    """The package is on no index, so its name is nothing that pip finds."""
    said_otherwise = re.compile(r"""keras_pg\[|pip install ["']?keras_pg""")
    texts = [ROOT / "README.md", ROOT / "keras_pg_cli.py"]
    for directory in ("keras_pg", "docs", "examples", "export", "benchmarks"):
        texts += [p for end in ("py", "md", "yml") for p in (ROOT / directory).rglob(f"*.{end}")]
    for path in texts:
        assert not said_otherwise.search(path.read_text()), path
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in setup["options.extras_require"]:
        said = extras.installation(extra)
        assert f'pip install ".[{extra}]"' in said and "clone" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "configured", "accepted"),
    [
        ("numpy", "tensorflow", False),
        # With these Keras itself may not be importable, for want of the backend's packages.
        (None, "numpy", False),
        ("", "jax", False),
        ("tensorflow", "jax", True),
    ],
)
def test_another_backend_is_refused_with_a_word_on_how_to_set_it(
    variable, configured, accepted, tmp_path
):
    config = {"backend": configured, "floatx": "float32", "epsilon": 1e-7}
    (tmp_path / "keras.json").write_text(json.dumps(config))
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment["KERAS_HOME"] = str(tmp_path)
    if variable is not None:
        environment["KERAS_BACKEND"] = variable
    result = subprocess.run(
        [sys.executable, "-c", "import keras_pg"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode == 0) == accepted
    if not accepted:
        assert "ImportError: keras_pg" in result.stderr and "KERAS_BACKEND" in result.stderr


def test_the_installed_versions_are_inside_the_stated_ranges():
    requirements = [Requirement(text) for text in importlib.metadata.requires("keras_pg")]
    needed = [r for r in requirements if r.marker is None]
    assert {"tensorflow", "keras", "gymnasium", "numpy"} <= {r.name for r in needed}
    for requirement in needed:
        assert importlib.metadata.version(requirement.name) in requirement.specifier, requirement


def test_what_is_imported_with_a_module_is_required():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    core = required(setup["options"]["install_requires"])
    serve = core | required(setup["options.extras_require"]["serve"])
    test = serve.union(*map(required, setup["options.extras_require"].values()))
    distributions = importlib.metadata.packages_distributions()
    listed = {path: serve if "serving" in name else core for name, path in modules()}
    listed |= {path: test for path in (ROOT / "tests").rglob("*.py")}
    for path, requirements in listed.items():
        for package in packages_imported_with(path) & distributions.keys() - OURS:
            names = {name.lower().replace("_", "-") for name in distributions[package]}
            assert names & requirements, f"{path} imports {package}"


def required(text):
    names = {Requirement(line).name.lower() for line in text.split("\n") if line}
    # What its stubs and messages are made of.
    return names | ({"grpcio", "protobuf"} if "tensorflow-serving-api" in names else set())


def packages_imported_with(path):
    statements = ast.parse(path.read_text()).body
    names = {a.name for node in statements if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in statements if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_public_names_are_listed_one_by_one():
    import keras_pg

    for name in keras_pg.__all__:
        assert hasattr(keras_pg, name)
    with pytest.raises(AttributeError):
        _ = keras_pg.does_not_exist
