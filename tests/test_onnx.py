"""Policies in ONNX's runtime."""

import importlib.util
import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest

import keras_pg
from keras_pg import replay, saved_model, spaces
from keras_pg.spaces import by_name
from policies import POLICIES, raw_observations, rows, some_slow


@pytest.mark.parametrize("name", some_slow(POLICIES, "clipped", "masked", "channels first"))
def test_onnx_acts_as_the_agent_does(name, exported):
    agent, version = exported(name, "onnx")
    session = onnxruntime.InferenceSession(str(version / "policy.onnx"))
    declared = {declared.name for declared in session.get_inputs()}
    outputs = [output.name for output in session.get_outputs()]
    assert set(outputs) == {"action", *POLICIES[name][3]}
    observations = raw_observations(agent.actor.observation_space, 200)
    assert declared == by_name(observations).keys()
    expected = {k: v.numpy() for k, v in agent.described_actions(observations).items()}
    for size in (1, 7, 200):
        batches = [rows(observations, slice(i, i + size)) for i in range(0, 200, size)]
        answers = [session.run(outputs, by_name(batch)) for batch in batches]
        for output, parts in zip(outputs, zip(*answers)):
            values = np.concatenate(parts)
            assert values.dtype == expected[output].dtype
            np.testing.assert_allclose(values, expected[output], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", some_slow(POLICIES, "clipped", "masked"))
def test_the_batch_dimension_has_a_name(name, exported):
    agent, version = exported(name, "onnx")
    session = onnxruntime.InferenceSession(str(version / "policy.onnx"))
    shapes = {value.name: value.shape for value in session.get_inputs()}
    observations = raw_observations(agent.actor.observation_space, 3)
    assert shapes == {k: ["batch", *v.shape[1:]] for k, v in by_name(observations).items()}
    for output in session.get_outputs():
        assert output.shape[0] == "batch"
        assert "batch" not in output.shape[1:]


def test_the_file_says_what_it_is_and_who_made_it(exported):
    agent, version = exported("clipped", "onnx")
    model = onnx.load(version / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.producer_version) == ("keras_pg", keras_pg.__version__)
    session = onnxruntime.InferenceSession(str(version / "policy.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    description = json.loads((version / "assets.extra" / "policy.json").read_text())
    assert metadata["algorithm"] == description.pop("algorithm") == type(agent).__name__
    commit = description.pop("git_commit")
    assert metadata["git_commit"] == (commit or "null")
    for name, value in description.items():
        assert json.loads(metadata[name]) == value
    assert json.loads(metadata["versions"])["keras_pg"] == keras_pg.__version__
    space = spaces.to_config(agent.actor.observation_space)
    assert json.loads(metadata["observation_space"]) == space


def test_golden_observations_are_replayed_in_onnx(exported):
    _, version = exported("clipped", "onnx")
    assert sorted(os.listdir(version)) == ["assets.extra", "policy.onnx"]
    report = replay.replay(replay.runner(version), version)
    assert report["equal"] is True and report["latency"]["p50"] < 1.0
    assert saved_model.verify(version)["equal"] is True


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "tf2onnx"])
def test_a_missing_package_is_named_before_anything_is_written(
    package, exported, tmp_path, monkeypatch
):
    agent, _ = exported("clipped")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    with pytest.raises(ImportError, match=rf"needs {package}: .*pip install \"\.\[onnx\]\""):
        agent.export(tmp_path / "policy", format="onnx")
    assert not os.listdir(tmp_path)


def test_value_has_no_place_in_onnx(exported, tmp_path):
    agent, _ = exported("clipped")
    with pytest.raises(ValueError, match="ONNX has no signatures"):
        agent.export(tmp_path, format="onnx", value=True)
