"""Fixtures that several files share."""

import functools

import pytest

from policies import agent_of

SLOW = {"learning", "serving"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What is in these directories is slow; other tests say so themselves."""
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(agent, version directory) of a policy, made once for all tests that leave it as it is."""

    @functools.cache
    def export(name, format="saved_model", value=False):
        agent = agent_of(name)
        base = tmp_path_factory.mktemp("policies") / "policy"
        return agent, agent.export(base, format=format, value=value)

    return export
