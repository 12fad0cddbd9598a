"""Write a folder of static files that classifies pictures in a browser, with no request to anywhere.

It works from `file://`, where a page may load scripts but fetch nothing: model and runtime lie in scripts, as base64.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

from .. import settings
from ..errors import LGDError
from ..publish.metrics import EVALUATIONS, read_metrics
from ..utils.files import atomic_file
from .graph import Graph, Names, graph_of
from .loading import ExportModel
from .onnx import write

PAGE = Path(__file__).parent / "web_page"
VERSION = "1.30.0"
REGISTRY = "https://registry.npmjs.org"
TARBALL = f"onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
LARGEST = 200_000_000  # bytes of the tarball
FILES = {"js": "ort.wasm.min.js", "mjs": "ort-wasm-simd-threaded.mjs", "wasm": "ort-wasm-simd-threaded.wasm"}


def export(
    model: ExportModel,
    folder: Path,
    *,
    vocabulary: Names | None = None,
    templates: str = "none",
    runtime: str | None = None,
) -> str:
    """Write the folder.

    Args:
        model: the model.
        folder: where the files go.
        vocabulary: names to answer with; None: the model's own.
        templates: prompt templates for `vocabulary`.
        runtime: `npm pack onnxruntime-web`'s tarball of the pinned version; None: fetched from the npm registry once.

    Returns:
        A line that says what was written.

    Raises:
        LGDError: a model without names, a runtime that can't be had or is not the pinned one.
        MissingExtra: onnx is not installed.
    """
    graph = graph_of(model, vocabulary=vocabulary, templates=templates)
    return write_page(graph, folder, runtime=runtime)


def write_page(graph: Graph, folder: Path, *, runtime: str | None = None, asks: bool = False) -> str:
    """Write the folder of a graph.

    Args:
        graph: whose answers have names.
        folder: where the files go.
        runtime: as of `export`.
        asks: whether the page asks its server about other names; the graph has to answer with embeddings then.

    Returns:
        A line that says what was written.

    Raises:
        LGDError, MissingExtra: as `export`.
    """
    names = graph.model.label_names
    if graph.output != "logits" or not names:
        raise LGDError(f"--to web: {graph.model.name!r} has no names to answer with. Give a student, or --vocabulary.")
    parts = _runtime(Path(runtime) if runtime else _fetched())
    distance = write(graph, folder / "model.onnx")
    onnx = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()  # a page on file:// reads scripts only
    for name in ("index.html", "app.js"):
        shutil.copyfile(PAGE / name, folder / name)
    model = {"onnx": _text(onnx), "facts": {**_facts(graph), "asks": asks}}
    (folder / "model.js").write_text(f"globalThis.LGD_MODEL = {_script(model)};\n", encoding="utf-8")
    binary = {key: _text(parts[key]) for key in ("mjs", "wasm")}
    script = parts["js"].decode() + f"\nglobalThis.LGD_RUNTIME = {_script(binary)};\n"
    (folder / "runtime.js").write_text(script, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    return f"open index.html: {len(names)} names, {size / 1e6:.1f} MB; at most {distance:.1e} from timm's"


def _facts(graph: Graph) -> dict[str, Any]:
    """What the page says and does: names, how pictures are shown, and what was measured."""
    model = graph.model
    about = {"architecture": model.architecture, "input": f"{model.size} x {model.size} pixels"}
    if model.folder is not None:
        metrics = read_metrics(model.folder)
        for evaluation in EVALUATIONS:
            if scores := metrics.get(evaluation.key):
                about[evaluation.title] = f"{scores['top1']:.2f} % top-1"
    about |= {"answers": ", ".join(model.label_names[:30]) + (", ..." if len(model.label_names) > 30 else "")}
    title = model.folder.name if model.folder is not None else model.name
    return {**graph.facts(), "title": title, "about": about}


def _script(value: Any) -> str:
    """JSON that may stand in a script, whatever the names are."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _fetched() -> Path:
    """The runtime's tarball in the cache, fetched where it is not there. Raises: LGDError."""
    path = settings.cache_folder() / "web" / TARBALL
    if path.is_file():
        return path
    address = f"{REGISTRY}/onnxruntime-web/-/{TARBALL}"
    advice = (
        f"Fetch it where there is a network, npm pack onnxruntime-web@{VERSION}, and give it as --runtime {TARBALL}."
    )
    if settings.offline():
        raise LGDError(f"--to web needs {address}, and requests are forbidden (HF_HUB_OFFLINE). {advice}")
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            data = answer.read(LARGEST)
    except OSError as error:
        raise LGDError(f"{address} can't be had ({error}). {advice}") from error
    _check(data, address)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def _check(data: bytes, name: str) -> None:
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != SHA512:
        raise LGDError(
            f"{name} is not onnxruntime-web {VERSION}: its sha512 is {found[:16]}..., not {SHA512[:16]}... "
            f"Remove it, or get it with npm pack onnxruntime-web@{VERSION}."
        )


def _runtime(tarball: Path) -> dict[str, bytes]:
    """The runtime's files. Raises: LGDError."""
    if not tarball.is_file():
        raise LGDError(f"--runtime {tarball} is no file. Get it with npm pack onnxruntime-web@{VERSION}.")
    data = tarball.read_bytes()
    _check(data, str(tarball))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {key: _member(tar, f"package/dist/{name}") for key, name in FILES.items()}


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, name
    return file.read()
