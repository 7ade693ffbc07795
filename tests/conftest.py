"""Fixtures that several files share."""

import functools

import pytest

from policies import agent_of


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """(agent, version directory) of a policy, made once for all tests that leave it as it is."""

    @functools.cache
    def export(name, format="saved_model", value=False):
        agent = agent_of(name)
        base = tmp_path_factory.mktemp("policies") / "policy"
        return agent, agent.export(base, format=format, value=value)

    return export
