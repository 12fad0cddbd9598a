"""Any web server on loopback: the files of a folder, with the faults of the Hub that `hub_server` makes.

    with FolderServer(folder, scratch) as server:  # .url, .log, .faults
        ...

What is asked for below /away/ is redirected to another host, with a signature in its query, as object stores do.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from tests.helpers.hub_server import HubError, HubServer, Reply, Request, _ranged

SIGNATURE = "Signature=kept-secret"


class FolderServer(HubServer):
    """Serves a folder, which may change meanwhile. `scratch`: an empty one, for what the Hub would need."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        super().__init__(scratch)
        self.folder = folder

    def bodies(self, name: str) -> list[Request]:
        """Requests that were answered with (a part of) a file of that name."""
        return [request for request in self.log if request.path.endswith(f"/{name}") and request.status in (200, 206)]

    def asked(self, name: str) -> int:
        """How often a file of that name was asked for."""
        return sum(request.path.endswith(f"/{name}") for request in self.log)

    def _dispatch(self, request: Request) -> Reply:
        if request.path.startswith("/away/"):
            return Reply(
                b"", 302, {"Location": f"{self.cdn_url}/signed{request.path.removeprefix('/away')}?{SIGNATURE}"}
            )
        path = self.folder / unquote(request.path.removeprefix("/signed")).lstrip("/")
        if not path.is_file():
            raise HubError(404, "No such file")
        return _ranged(request, path.read_bytes(), {})
