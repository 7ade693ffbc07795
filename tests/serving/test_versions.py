"""Versions that come, go and fail, their labels, and configurations."""

import concurrent.futures
import os
import shutil
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_management_pb2

from clients import predict_request, rest, states, stubs
from keras_pg import versions
from keras_pg.serving import config
from keras_pg.serving.models import Model, Models, State, every, latest, newest_and_labelled
from recorded_models import save_doubling
from servers import ONE, PREDICT, eventually, publish, serving


def test_a_new_version_takes_over_and_the_old_one_ends(base):
    with serving(base) as server:
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        publish(base, factor=3.0)
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        status, answer = rest(server, "/v1/models/policy/versions/1:predict", ONE)
        assert status == 404
        assert answer == {"error": "Servable not found for request: Specific(policy, 1)"}


def test_a_swap_under_load_drops_no_request_and_mixes_no_versions(base):
    rows = {"instances": [[1.0, 2.0]] * 16}
    answers, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            answers.append(rest(server, PREDICT, rows))

    with serving(base) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(keep_asking) for _ in range(4)]
        for version in range(2, 6):
            publish(base, factor=float(version))
            eventually(lambda version=version: states(server).get(version) == "AVAILABLE")
        stop.set()
        for client in clients:
            client.result()
    assert {status for status, _ in answers} == {200}
    factors = set()
    for _, answer in answers:
        (row,) = {tuple(row) for row in answer["predictions"]}
        factors.add(row[0])
        assert row[1] == 2 * row[0]
    assert factors <= {2.0, 3.0, 4.0, 5.0} and len(factors) > 1


def test_a_corrupt_version_leaves_the_old_one_serving_and_says_why(base):
    with serving(base) as server:
        version = base / "2"
        shutil.copytree(base / "1", base.parent / "copy")
        (base.parent / "copy" / "saved_model.pb").write_bytes(b"\x00 no protobuf")
        os.rename(base.parent / "copy", version)
        eventually(lambda: states(server).get(2) == "END")
        assert states(server) == {2: "END", 1: "AVAILABLE"}
        _, answer = rest(server, "/v1/models/policy/versions/2")
        (entry,) = answer["model_version_status"]
        assert entry["status"]["error_code"] != "OK"
        assert "saved_model.pb" in entry["status"]["error_message"]
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        publish(base, factor=5.0)
        eventually(lambda: states(server).get(3) == "AVAILABLE")
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[5.0, 10.0]]})


def test_a_version_without_its_variables_is_not_loaded_and_the_old_one_is_kept(exported, tmp_path):
    _, version = exported("cartpole")
    base = tmp_path / "policy"
    for number in ("1", "2"):
        shutil.copytree(version, base / number)
    shutil.rmtree(base / "2" / "variables")
    models = Models([Model("policy", base, latest())], max_num_load_retries=0)
    models.poll()
    assert [state for _, state, _ in models.status("policy")] == [State.END]
    shutil.copytree(version, base / "3")
    models.poll()
    shutil.copytree(base / "2", base / "4")
    models.poll()
    assert models.find("policy")[0] == 3


@pytest.mark.parametrize("retries", [0, 5])
def test_the_newest_serves_until_a_newer_one_can_beside_a_labelled_one(base, retries):
    versions.label(base, base / "1", ["stable"])
    publish(base)
    models = Models([Model("policy", base, newest_and_labelled)], max_num_load_retries=retries)
    models.poll()
    (base / "3").mkdir()  # half copied
    for _ in range(2):
        models.poll()
        assert models.find("policy")[0] == 2
    publish(base)
    models.poll()
    assert models.find("policy")[0] == 4
    available = [n for n, state, _ in models.status("policy") if state == State.AVAILABLE]
    assert available == [4, 1]


def test_a_version_with_a_failing_warmup_is_not_served(base):
    with serving(base) as server:
        publish(base, warmup="no_such_signature")
        eventually(lambda: states(server).get(2) == "END")
        _, answer = rest(server, "/v1/models/policy/versions/2")
        message = answer["model_version_status"][0]["status"]["error_message"]
        assert message == 'Serving signature key "no_such_signature" not found.'
        assert rest(server, PREDICT, ONE)[0] == 200
    with serving(base, servable={"warm_up": False}) as server:
        assert states(server) == {2: "AVAILABLE"}


def test_names_that_are_no_numbers_are_no_versions(base):
    for name in ("1a", ".writing-x", "tmp_2"):
        shutil.copytree(base / "1", base / name)
    (base / "7").write_text("a file")
    with serving(base, every) as server:
        assert states(server) == {1: "AVAILABLE"}


def test_when_all_versions_go_none_is_served(base):
    with serving(base) as server:
        os.rename(base / "1", base.parent / "gone")
        eventually(lambda: states(server) == {1: "END"})
        assert rest(server, PREDICT, ONE) == (
            404,
            {"error": "Servable not found for request: Latest(policy)"},
        )
        os.rename(base.parent / "gone", base / "1")
        eventually(lambda: states(server) == {1: "AVAILABLE"})
        assert rest(server, PREDICT, ONE)[0] == 200


def test_labels_of_exports_are_served_and_moved(base):
    publish(base, factor=3.0)
    versions.label(base, base / "1", ["stable"])
    stable = "/v1/models/policy/labels/stable:predict"
    polls = Polls()
    with serving(base, newest_and_labelled, before_poll=polls) as server:
        assert states(server) == {2: "AVAILABLE", 1: "AVAILABLE"}
        assert rest(server, stable, ONE) == (200, {"predictions": [[2.0, 4.0]]})
        assert rest(server, PREDICT, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        versions.label(base, base / "2", ["stable"])
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        versions.label(base, base / "7", ["stable"])  # no such version: the label stays
        polls.wait()
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})
        (base / versions.LABELS).write_text("{")  # half written: the server goes on as it was
        polls.wait()
        assert rest(server, stable, ONE) == (200, {"predictions": [[3.0, 6.0]]})


def test_a_base_directory_that_is_away_for_a_moment_takes_nothing_down(base):
    polls = Polls()
    with serving(base, before_poll=polls) as server:
        os.rename(base, base.parent / "away")
        polls.wait()
        assert rest(server, PREDICT, ONE)[0] == 200
        os.rename(base.parent / "away", base)
        publish(base, factor=3.0)
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})


class Polls:
    """Counts the looks for new versions."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1

    def wait(self):
        """Until a look has begun and ended."""
        before = self.count
        eventually(lambda: self.count >= before + 3)


def test_a_failed_version_is_tried_again_once_it_has_been_replaced(base):
    with serving(base) as server:
        (base / "2").mkdir()
        eventually(lambda: states(server).get(2) == "END")
        (base / "2").rmdir()
        eventually(lambda: states(server) == {2: "END", 1: "AVAILABLE"})
        polled = Polls()
        server._before_poll = polled
        polled.wait()
        publish(base, factor=3.0)
        eventually(lambda: states(server).get(2) == "AVAILABLE")


def test_a_warmup_of_garbage_fails_its_version_and_no_other(base, tmp_path):
    save_doubling(tmp_path / "other" / "1")
    (tmp_path / "other" / "1" / "assets.extra").mkdir()
    path = tmp_path / "other" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"\xff\xff")
    models = [Model("other", tmp_path / "other", latest()), Model("policy", base, latest())]
    retries = {"max_num_load_retries": 0, "load_retry_interval": 0.0}
    loaded = Models(models, **retries)
    loaded.poll()
    assert loaded.given_up().keys() == {"other"}
    ((_, _, error),) = loaded.status("other")
    assert error.code == grpc.StatusCode.DATA_LOSS and "no PredictionLog" in error.message
    assert loaded.find("policy")[0] == 1


def test_no_request_falls_between_two_versions(base, monkeypatch):
    from keras_pg.serving import models

    class Instant:
        def __init__(self, path):
            self.number = int(path.name)

    monkeypatch.setattr(models, "Servable", Instant)
    served = Models([Model("policy", base, newest_and_labelled)])
    versions.label(base, base / "1", ["stable"])
    served.poll()
    stop = threading.Event()

    def keep_finding():
        count = 0
        while not stop.is_set():
            for label in (None, "stable"):
                version, servable = served.find("policy", label=label)
                assert servable.number == version
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(keep_finding) for _ in range(4)]
        for number in range(2, 12):
            (base / str(number)).mkdir()
            versions.label(base, base / str(number), ["stable"])
            served.poll()
        stop.set()
        assert all(reader.result() > 0 for reader in readers)


def test_a_configuration_that_lists_no_models_is_refused_and_changes_nothing(base, tmp_path):
    file = tmp_path / "models.config"
    file.write_text("")
    with pytest.raises(ValueError, match="has no model_config_list"):
        config.read_models(file)
    request = model_management_pb2.ReloadConfigRequest()
    with serving(base) as server:
        for _ in range(2):
            code, details = refused_configuration(server, request)
            assert code == grpc.StatusCode.INVALID_ARGUMENT and "Only ModelConfigList" in details
            request.config.custom_model_config.SetInParent()
        assert states(server) == {1: "AVAILABLE"}


def refused_configuration(server, request):
    """(code, details) of a request for another configuration."""
    with stubs(server) as (_, models), pytest.raises(grpc.RpcError) as error:
        models.HandleReloadConfigRequest(request, timeout=30)
    return error.value.code(), error.value.details()


def test_without_a_poll_interval_versions_are_looked_for_once(base):
    with serving(base, poll_seconds=0) as server:
        assert len(server._threads) == 1 and states(server) == {1: "AVAILABLE"}


def test_a_model_that_cannot_start_ends_the_server(base):
    (base / "1" / "saved_model.pb").write_bytes(b"")
    with (
        pytest.raises(RuntimeError, match=r"1 servable\(s\) did not become available: .*policy"),
        serving(base),
    ):
        pass


def test_configuration_by_rpc(base):
    publish(base, factor=3.0)
    with serving(base) as server, stubs(server) as (prediction, models):
        request = model_management_pb2.ReloadConfigRequest()
        entry = request.config.model_config_list.config.add(name="other", base_path=str(base))
        entry.model_version_policy.specific.versions.append(1)
        entry.version_labels["stable"] = 1
        assert models.HandleReloadConfigRequest(request, timeout=30).status.error_code == 0
        answer = prediction.Predict(predict_request("other", x=np.float32([[1, 2]])), timeout=30)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[2.0, 4.0]]
        with pytest.raises(grpc.RpcError) as error:
            prediction.Predict(predict_request("policy", x=np.float32([[1, 2]])), timeout=30)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND
        entry.base_path = "relative"
        code, details = refused_configuration(server, request)
        assert code == grpc.StatusCode.INVALID_ARGUMENT and "absolute path" in details
        assert states(server, "other") == {1: "AVAILABLE"}
        entry.name, entry.base_path = "third", str(base / "none")
        code, details = refused_configuration(server, request)
        assert code == grpc.StatusCode.UNKNOWN and "did not become available" in details


def test_a_configuration_with_two_models_of_one_name_is_refused(tmp_path):
    file = tmp_path / "models.config"
    entry = f'config {{ name: "a" base_path: "{tmp_path}" }}'
    file.write_text(f"model_config_list {{ {entry} {entry} }}")
    with pytest.raises(ValueError, match="Two models have one name"):
        Models(config.read_models(file))
