"""Fixtures for the examples in docstrings and for the tests."""

import pytest
import tensorflow as tf

import keras_pg

# TensorFlow's graph optimizer takes a tenth of a test that traces, and no test is about it. It is
# there, as it is for users, in what runs in a process of its own: the examples, and the training
# with which `.ci/run` begins.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture
def without_xla(monkeypatch):
    """Agents without a given `jit_compile` run as graphs: XLA takes most of a test."""
    compile = keras_pg.Agent.compile

    def quick_compile(agent, *arguments, **keyword_arguments):
        compile(agent, *arguments, **{"jit_compile": False, **keyword_arguments})

    monkeypatch.setattr(keras_pg.Agent, "compile", quick_compile)


@pytest.fixture(autouse=True)
def docstrings_without_xla(request):
    """XLA would compile for a minute here what tests compile too."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("without_xla")
