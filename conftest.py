"""Fixtures for the examples in docstrings and for the tests."""

import pytest

import keras_pg


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
