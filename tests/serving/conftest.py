"""Fixtures of the server's tests."""

import pytest

from tests.decoding.engines import open_tiny
from tests.serving.local import LIMITS, Local, write_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def tiny_engine(tiny_folder):
    return open_tiny(tiny_folder, **LIMITS)


@pytest.fixture(scope="module")
def server(tiny_engine):
    """The application on a tiny model; each module has a service of its own."""
    local = Local(tiny_engine)
    yield local
    local.close()
    assert local.idle()
