from __future__ import annotations

import pytest

from tests.web.panel.browser import PanelServer, open_browser


@pytest.fixture(scope="session")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the module's own, with the users ada (admin) and bob (viewer)."""
    server = PanelServer(tmp_path_factory.mktemp("panel"))
    yield server
    server.close()
