"""`lgd-timm demo`: the page that classifies pictures, on this machine."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.schema import Port
from .common import add_command, number

if TYPE_CHECKING:
    from .common import Commands


def add_demo(commands: Commands) -> None:
    """Add the parser."""
    parser = add_command(commands, "demo", _demo, "serve a page that classifies pictures, on loopback")
    parser.add_argument("model", help="published folder, hub://ORG/NAME[@REV], name as lgd_mobilenetv2, or run folder")
    parser.add_argument("--port", type=number(Port), default=8000, help="of 127.0.0.1; 0: any that is free")
    parser.add_argument(
        "--runtime",
        metavar="FILE",
        help="tarball of `npm pack onnxruntime-web` (default: fetched from the npm registry once)",
    )


def _demo(options: argparse.Namespace) -> None:
    from ..export.demo import HOST, make_demo
    from ..export.loading import open_export_model

    with tempfile.TemporaryDirectory() as folder:
        model = open_export_model(options.model)
        with make_demo(model, Path(folder), port=options.port, runtime=options.runtime) as server:
            print(f"open http://{HOST}:{server.server_address[1]}/ in a browser; Ctrl-C ends it", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()
