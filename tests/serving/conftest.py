"""A fixture that several files share."""

import pytest

from recorded_models import save_doubling


@pytest.fixture
def base(tmp_path):
    """A base directory whose version 1 doubles."""
    save_doubling(tmp_path / "policy" / "1")
    return tmp_path / "policy"
