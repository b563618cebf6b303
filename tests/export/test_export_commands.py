"""`shotstream export` as a user calls it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from shotstream.export.manifest import read_manifest, write_manifest
from shotstream.runtime.cli import run
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.transformer import Transformer

TOY = DiTConfig(dim=16, heads=2, ffn_dim=32, layers=2, freq_dim=16, channels=4, text_len=4, text_dim=8, shift=3.0)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.safetensors"
    save_file(Transformer(TOY).state_dict(), path, metadata={"config": TOY.to_json()})
    return path


def test_a_file_is_exported_verified_and_caught_changed(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graphs"
    model = ["--model", str(toy), "--latent-size", "4x6"]
    assert run(["export", "onnx", *model, "--only", "segments", "--out", str(out)]) == 0
    assert list(read_manifest(out).graphs) == ["text_ctx", "head", "mid_0", "tail"]
    assert run(["export", "verify", str(out), *model]) == 0
    assert "10 passed, 0 failed" in capsys.readouterr().out

    manifest = read_manifest(out)
    write_manifest(out, replace(manifest, source=replace(manifest.source, precision="float8")))
    assert run(["export", "verify", str(out), *model]) == 2
    assert "there is no precision 'float8' here" in capsys.readouterr().err
    write_manifest(out, manifest)

    changed = Transformer(TOY).state_dict()
    save_file(changed, toy, metadata={"config": TOY.to_json()})
    assert run(["export", "verify", str(out), *model]) == 2
    assert "is an export of other weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nothing"], "there is no model 'nothing'; there is tiny, wan-1.3b"),
        (["--model", "no.safetensors"], "there is no file no.safetensors"),
        (["--model", "TOY"], "does not say how large its latents are; give --latent-size"),
        (["--model", "TOY", "--latent-size", "4"], "--latent-size is HEIGHTxWIDTH"),
        (["--model", "TOY", "--latent-size", "5x6"], "latents of 5x6 do not split into patches"),
        (["--model", "tiny", "--latent-size", "4x6"], "a preset has its own"),
        (["--precision", "int3"], "there is no precision 'int3' here"),
        (["--only", "segments,wheels"], "an export has no 'wheels'"),
    ],
)
def test_what_does_not_exist_is_refused(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [str(toy) if argument == "TOY" else argument for argument in arguments]
    assert run(["export", "onnx", "--out", str(tmp_path / "graphs"), *given]) == 2
    assert message in capsys.readouterr().err
