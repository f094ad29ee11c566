"""Stage vq: the reference's codes, resumed after a kill, run again for other weights."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from commands import refusal
from paths import GOLDEN, ROOT, needs_shared
from raw_data import build_command, picture, run_well, skipped, write_artwork, write_roco
from safetensors.numpy import load_file, save_file
from trainer_shards import CODES, CONFIG, SIDE, make_model

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_decoder, vq_encoder
from janus.model.config import PRESETS
from pipelines.cli import main
from pipelines.tables import INDEX_ROWS, ImageRows, read_table
from shards.cli import main as shards_main
from shards.manifest import load_manifest

ARTWORKS, FIGURES = 90, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("model"))
    (folder / "preprocessor_config.json").write_text(f'{{"image_size": {SIDE}}}')
    return folder


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with one other weight in its VQ encoder."""
    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("other") / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vqmodel.encoder.conv_in.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_pictures(data: Path, artworks: int, figures: int) -> None:
    csv = "image_path,text_en\n" + "".join(f"./jade/images/{i}.png,w{i % 20}\n" for i in range(artworks))
    colours = {f"{i}.png": picture((i, 0, 90), (SIDE, SIDE)) for i in range(artworks)}
    write_artwork(data, csv.encode(), colours)
    images = [picture((i, 200, i), (SIDE, SIDE)) for i in range(figures)]
    rows = [{"image": image, "image_id": f"ROCO_{i}", "caption": f"w{i}"} for i, image in enumerate(images)]
    write_roco(data, rows)


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    write_pictures(root / "data", ARTWORKS, FIGURES)
    run_well("ingest", "--data", root / "data", "--work", root / "work")
    run_well("images", "--work", root / "work", "--tokenizer", model, "--workers", 1)
    return root / "work"


@pytest.fixture(scope="module")
def encoded(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("encoded") / "work"))
    assert "resumed" not in run_well("vq", "--work", work, "--model", model)
    return work


@pytest.fixture(scope="module")
def killed(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose stage vq was killed once it had written three parts."""
    work = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("killed") / "work"))
    command = [sys.executable, "-m", "pipelines", "vq", "--work", str(work), "--model", str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(parts_of(work)) < 3:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    assert not (work / "vq").exists()
    return work


@pytest.fixture
def again(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "work"))


def parts_of(work: Path) -> list[Path]:
    return sorted((work / ".vq-parts").glob("*/*.arrow"))


def codes_of(work: Path) -> bytes:
    return (work / "vq" / "codes.arrow").read_bytes()


@needs_shared
def test_codes_and_decoded_pictures_equal_the_references() -> None:
    cases = load_file(GOLDEN / "tiny" / "cases.safetensors")
    encode = vq_encoder(open_model(str(GOLDEN / "tiny" / "deepseek-format")))
    found = [encode(pixels_HWC).tolist() for pixels_HWC in cases["image_uint8"]]
    assert found == cases["t2i.image_tokens"].tolist()
    decode = vq_decoder(open_model(str(GOLDEN / "tiny" / "hf-format")))
    expected_IHWC = ((cases["t2i.vq_decoded"].transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255)
    for codes_T, expected_HWC in zip(cases["t2i.image_tokens"], expected_IHWC, strict=True):
        assert np.abs(decode(codes_T) - expected_HWC).max() < 0.51


def test_every_picture_has_its_own_codes(encoded: Path, model: Path) -> None:
    codes = read_table(encoded / "vq" / "codes.arrow")
    rows = ImageRows(encoded / "images", "generation", "webp")
    assert codes["image_sha256"].to_pylist() == rows.index["image_sha256"].to_pylist()
    assert len(rows) == ARTWORKS + FIGURES
    encode = vq_encoder(open_model(str(model)))
    for i in (0, INDEX_ROWS, len(rows) - 1):
        assert codes["image_tokens"][i].as_py() == encode(rows.pixels(i, SIDE)).tolist()
    assert not (encoded / ".vq-parts").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(again: Path, encoded: Path, model: Path) -> None:
    """Parts that the disk lost are encoded again."""
    parts, total = parts_of(again), ARTWORKS + FIGURES
    os.truncate(parts.pop(), 0)
    os.truncate(parts.pop(), 300)
    log = run_well("vq", "--work", again, "--model", model)
    done = INDEX_ROWS * len(parts)
    assert f"vq: resumed after {done} of {total} images" in log
    assert f"vq: {total - done} images in" in log
    assert codes_of(again) == codes_of(encoded)
    assert not (again / ".vq-parts").exists()


@pytest.mark.slow
def test_parts_of_another_encoder_are_dropped(again: Path, encoded: Path, other: Path) -> None:
    assert "resumed" not in run_well("vq", "--work", again, "--model", other)
    assert not (again / ".vq-parts").exists()
    assert codes_of(again) != codes_of(encoded)


def said_of_codes(shards: Path) -> tuple[Any, str]:
    """In the manifest, and by `shards inspect`."""
    return load_manifest(shards).vq, commands.run_well(shards_main, "inspect", shards)


def test_other_weights_run_vq_and_write_again(model: Path, other: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 3, 2)
    build = build_command(tmp_path / "data", tmp_path, model, "--workers", 1, "--model")
    assert "MEAN NOTHING" not in run_well(*build, model)
    first, _ = said_of_codes(tmp_path / "shards")
    moved = shutil.copytree(model, tmp_path / "moved")
    assert skipped(run_well(*build, moved)) == ["ingest", "tokenize", "images", "vq", "write"]
    assert skipped(run_well(*build, other)) == ["ingest", "tokenize", "images"]
    second, inspected = said_of_codes(tmp_path / "shards")
    sha256s = [open_model(str(folder)).vq_encoder_sha256() for folder in (model, other)]
    assert [first, second] == [{"encoder_sha256": x, "weights": "checkpoint"} for x in sha256s]
    assert first != second
    assert f"VQ codes: encoder sha256 {second['encoder_sha256']}, a checkpoint's weights" in inspected


@pytest.mark.slow
def test_random_codes_mean_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", CONFIG)
    write_pictures(tmp_path / "data", 3, 2)
    build = build_command(tmp_path / "data", tmp_path, model, "--workers", 1, "--model", "small")
    assert "vq: WARNING: small has no VQ weights" in run_well(*build)
    log = run_well(*build)
    assert "image codes are of random weights, so they MEAN NOTHING" in log
    assert "vq" in skipped(log)
    assert "random weights, so they MEAN NOTHING" in said_of_codes(tmp_path / "shards")[1]
    # The same weights out of a checkpoint: codes are the same, what is said about them is not.
    assert "vq" not in skipped(run_well(*build[:-1], model))
    vq, _ = said_of_codes(tmp_path / "shards")
    assert vq["weights"] == "checkpoint"
    monkeypatch.setitem(PRESETS, "small", replace(CONFIG, vq=replace(CONFIG.vq, num_embeddings=CODES + 16)))
    assert "vq" not in skipped(run_well(*build))
    assert said_of_codes(tmp_path / "shards")[0]["encoder_sha256"] != vq["encoder_sha256"]


def test_pictures_of_another_size_than_the_models_are_refused(encoded: Path) -> None:
    line = refusal(main, "vq", "--work", encoded, "--model", "tiny")
    assert "pictures of 64 pixels, the VQ encoder of tiny takes 384" in line
