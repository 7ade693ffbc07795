"""Directories of versions: what a server that polls them sees, and what is kept."""

import json
import os
import shutil
import threading

import pytest

from keras_pg import versions


def make(base, *names):
    for name in names:
        (base / name).mkdir()
        (base / name / "saved_model.pb").write_text(name)
        (base / name / "assets.extra").mkdir()
        (base / name / "assets.extra" / "policy.json").write_text("{}")


def test_names_are_versions_if_tensorflow_serving_reads_an_int64_in_them(tmp_path):
    make(tmp_path, "0", "3", "00000005", "tmp_9", "12a", "7.5", "²", str(2**63))
    (tmp_path / "8").write_text("a file")
    assert versions.paths(tmp_path) == {
        0: tmp_path / "0",
        3: tmp_path / "3",
        5: tmp_path / "00000005",
    }
    assert versions.next_version(tmp_path).name == "9"
    assert versions.paths(tmp_path / "nowhere") == {}
    assert versions.next_version(tmp_path / "nowhere").name == "1"


def test_a_label_is_at_one_version(tmp_path):
    make(tmp_path, "1", "2")
    versions.label(tmp_path, tmp_path / "1", ["stable", "canary"])
    versions.label(tmp_path, tmp_path / "2", ["canary"])
    versions.label(tmp_path, tmp_path / "2", [])
    assert versions.labels(tmp_path) == {"stable": 1, "canary": 2}
    assert json.loads((tmp_path / "labels.json").read_text()) == {"stable": 1, "canary": 2}
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "labels.json"]
    assert (tmp_path / "labels.json").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"stable": "three"}', '{"stable": null}'])
def test_a_file_of_labels_that_is_none_is_named(text, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json should hold labels"):
        versions.labels(tmp_path)


@pytest.mark.parametrize("wrong", ["", "a/b", "a b", "1st", 7, None])
def test_what_is_no_name_is_no_label(wrong):
    with pytest.raises(ValueError, match="A label is a name"):
        versions.check_labels([wrong])
    assert versions.check_labels("blue-green_2") == ["blue-green_2"]


@pytest.mark.parametrize("keep, left", [(1, {3, 12}), (2, {3, 11, 12}), (9, {2, 3, 10, 11, 12})])
def test_the_newest_and_the_labelled_stay(keep, left, tmp_path):
    make(tmp_path, "2", "3", "10", "0011", "12", "other")
    versions.label(tmp_path, tmp_path / "3", ["stable"])
    versions.prune(tmp_path, keep)
    assert versions.paths(tmp_path).keys() == left
    assert (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))


def test_what_is_no_exported_policy_is_not_removed(tmp_path):
    make(tmp_path, "2", "3")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "agent.keras").write_text("a run of keras-pg train")
    versions.prune(tmp_path, 1)
    assert versions.paths(tmp_path).keys() == {1, 3}
    assert os.listdir(tmp_path / "1") == ["agent.keras"]


def test_a_version_that_goes_has_lost_its_number_before_its_first_file(tmp_path, monkeypatch):
    make(tmp_path, "1", "2", "3")
    removed, rmtree = [], shutil.rmtree

    def checked(path, *arguments):
        assert path.name.startswith(".removing-") and (path / "saved_model.pb").exists()
        removed.append((path / "saved_model.pb").read_text())
        rmtree(path, *arguments)

    monkeypatch.setattr(shutil, "rmtree", checked)
    versions.prune(tmp_path, 1)
    assert removed == ["1", "2"] and os.listdir(tmp_path) == ["3"]


def test_one_exporter_at_a_time(tmp_path):
    entered = threading.Event()

    def other():
        with versions.locked(tmp_path):
            entered.set()

    thread = threading.Thread(target=other)
    with versions.locked(tmp_path):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(10)
    assert entered.is_set()
