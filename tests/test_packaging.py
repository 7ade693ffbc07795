"""The wheel, the import graph, and the import itself."""

import ast
import configparser
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]

# Arrows point down: a module may import those of later layers only.
LAYERS = [
    {"__main__"},
    {"cli"},
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
    {"saved_model", "callbacks", "diagnostics", "video", "wrappers"},
    {"rollouts.__init__", "rollouts.evaluation", "rollouts.dataset", "rollouts.minibatches"},
    {"rollouts.acting", "rollouts.native_env", "rollouts.vector_env"},
    {"envs.__init__"},
    {
        *("envs.classic_control", "envs.frame_stack", "envs.gymnasium_adapter"),
        *("envs.image_tasks", "envs.small_tasks"),
    },
    {"envs.drawing", "envs.native_env"},
    {"networks", "rollouts.rollout"},
    {"advantages", "distributions"},
    {"returns", "normalization"},
    {"encoders", "losses", "randomness", "trust_region"},
    {"spaces", "versions", "_version", "hyperparameters", "remote", "replay"},
]
MATHS = {
    *("advantages", "distributions", "losses", "normalization"),
    *("randomness", "returns", "trust_region"),
}


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


def test_only_the_collector_and_the_adapter_need_the_vector_api():
    users = {
        name
        for name, path in modules()
        if any(module.startswith("gymnasium.vector") for module, _ in imports(path))
    }
    assert users == {"rollouts.vector_env", "envs.gymnasium_adapter"}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_type_marker_only(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"keras_pg"}
    assert "keras_pg/py.typed" in names
    assert sorted(n for n in names if n.endswith(".py")) == [
        str(path.relative_to(ROOT)) for _, path in sorted(modules(), key=lambda item: str(item[1]))
    ]


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
        for package in packages_imported_with(path) & distributions.keys() - {"keras_pg"}:
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
