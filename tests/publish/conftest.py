"""The Hub that its tests share; the fixtures are in `tests.helpers.running_hub`."""

from tests.helpers.running_hub import client, folder, manifest, running, server, small

__all__ = ["client", "folder", "manifest", "running", "server", "small"]
