"""What tests of engines share: an export of the small model, made once, and the stand-in for TensorRT."""

from __future__ import annotations

import atexit
import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from small_model import SmallPlugin

from shotstream.export.engine_store.store import EngineStore
from shotstream.export.exporting import PRECISIONS, export_graphs, source_of
from shotstream.export.graphs.contents import SEGMENTS, graph_specs
from shotstream.export.manifest import Manifest, read_manifest
from shotstream.export.trt.build import BuildOrder, build_plan
from shotstream.export.trt.keys import engine_key
from shotstream.export.trt.product import Product, load_product
from shotstream.runtime.plugins import ModelParts, ModelRequest

FAKES = Path(__file__).parent / "fakes"
LAYERS = {"layers": 3}


def small_parts(dtype: torch.dtype = torch.float32) -> ModelParts:
    """Of the small model with three blocks, one of which may be eight-bit."""
    return SmallPlugin()._model(ModelRequest(torch.device("cpu"), dtype, options=LAYERS))


@functools.cache
def small_export(precision: str = "float32") -> Path:
    """Folder of its segments."""
    folder = Path(tempfile.mkdtemp(prefix="small-export-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    parts = small_parts(PRECISIONS[precision])
    specs = graph_specs(parts, PRECISIONS[precision], (SEGMENTS,))
    export_graphs(folder, source_of(parts, precision), specs)
    return folder


def fake_tensorrt(monkeypatch: pytest.MonkeyPatch, name: str = "tensorrt") -> Product:
    """The stand-in for a product, as if it were installed; also in child processes."""
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)  # so that it is gone afterwards
        del sys.modules[module]
    return load_product(name)


def fill_store(root: Path, product: Product, folder: Path) -> Manifest:
    """Build every segment of an export into a store, in this process."""
    store, manifest = EngineStore(root), read_manifest(folder)
    for name, graph in manifest.graphs.items():
        key = engine_key(manifest, name, product, ("sm_90",))

        def build(plan: Path, file: str = graph.file, profiles: Mapping = key.profiles) -> Mapping[str, float]:
            build_plan(product, BuildOrder(product.name, str(folder / file), str(plan), profiles))
            return {"seconds": 0.0, "peak_mb": 0.0}

        store.get_or_build(key, build)
    return manifest
