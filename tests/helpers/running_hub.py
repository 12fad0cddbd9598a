"""One Hub and one client for all tests of the Hub: each test takes a repository and a cache of its own.

Everything runs twice: with a Hub and a client that know Xet, and with both as they were before it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hub_fixtures import NAME, HubClient, environment, make_folder
from tests.helpers.hub_server import WRITE_TOKEN, HubServer


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small published folder. Tests that change it take a copy."""
    return make_folder(tmp_path_factory.mktemp("small") / NAME)


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """The small published folder, to be changed."""
    return Path(shutil.copytree(small, tmp_path / NAME))


@pytest.fixture(scope="session", params=["lfs", "xet"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[HubServer, HubClient, Path]]:
    root = tmp_path_factory.mktemp("hub")
    manifest = root / "manifest.json"
    xet = request.param == "xet"
    with HubServer(root / "store", xet=xet) as server:
        settings = {
            "HF_TOKEN": WRITE_TOKEN,
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "LGD_TIMM_HUB": str(root / "none"),
            "LGD_TIMM_HUB_TIMEOUT": "0.5",  # so that waiting for what never comes is short
            "LGD_TIMM_HUB_PATIENCE": "2.5",
            "LGD_TIMM_PUSH_TIMEOUT": "3",
        }
        with HubClient(environment(server.url, root / "home", **settings), manifest) as client:
            yield server, client, manifest


@pytest.fixture
def server(running: tuple[HubServer, HubClient, Path]) -> Iterator[HubServer]:
    """The Hub, without faults and with an empty log."""
    running[0].log.clear()
    yield running[0]
    running[0].faults.clear()


@pytest.fixture
def client(running: tuple[HubServer, HubClient, Path]) -> HubClient:
    return running[1]


@pytest.fixture
def manifest(running: tuple[HubServer, HubClient, Path]) -> Path:
    """The client's manifest, to be written with `write_manifest`."""
    return running[2]
