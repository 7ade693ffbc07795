"""For the examples in docstrings: XLA would compile for a minute what other tests compile too."""

import pytest

import keras_pg


@pytest.fixture(autouse=True)
def docstrings_without_xla(request, monkeypatch):
    """The train steps of a docstring's example run as graphs."""
    if isinstance(request.node, pytest.DoctestItem):
        compile = keras_pg.Agent.compile

        def quick_compile(agent, *arguments, **keyword_arguments):
            compile(agent, *arguments, **{**keyword_arguments, "jit_compile": False})

        monkeypatch.setattr(keras_pg.Agent, "compile", quick_compile)
