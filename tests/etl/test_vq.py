"""Stage vq: the reference's codes, resumed after a kill, run again for other weights."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from paths import GOLDEN, ROOT, needs_shared
from raw_data import build_command, picture, run, run_well, skipped, write_artwork, write_roco
from safetensors.numpy import load_file, save_file
from trainer_shards import CODES, CONFIG, SIDE, make_model

from janus.checkpoint.folder import open_model
from janus.generate.pictures import vq_decoder, vq_encoder
from janus.model.config import PRESETS
from pipelines.tables import INDEX_ROWS, ImageRows, read_table
from shards.cli import main as shards_main
from shards.manifest import load_manifest

ARTWORKS, FIGURES = 90, 20


def model_folder(folder: Path) -> Path:
    """Weights, tokenizer and image preparation of a network that sees 64 pixels."""
    make_model(folder)
    (folder / "preprocessor_config.json").write_text(f'{{"image_size": {SIDE}}}')
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with one other weight in its VQ encoder."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.vqmodel.encoder.conv_in.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_pictures(data: Path, artworks: int, figures: int) -> None:
    """Pictures that all differ."""
    csv = "image_path,text_en\n" + "".join(f"./jade/images/{i}.png,w{i % 20}\n" for i in range(artworks))
    colours = {f"{i}.png": picture((i, 0, 90), (SIDE, SIDE)) for i in range(artworks)}
    write_artwork(data, csv.encode(), colours)
    write_roco(
        data,
        [
            {"image": picture((i, 200, i), (SIDE, SIDE)), "image_id": f"ROCO_{i}", "caption": f"w{i}"}
            for i in range(figures)
        ],
    )


def prepare(data: Path, work: Path, model: Path) -> Path:
    """All before stage vq; returns work."""
    run_well("ingest", "--data", data, "--work", work)
    run_well("images", "--work", work, "--tokenizer", model, "--workers", 1)
    return work


@pytest.fixture(scope="module")
def prepared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    write_pictures(root / "data", ARTWORKS, FIGURES)
    return prepare(root / "data", root / "work", model)


@pytest.fixture(scope="module")
def encoded(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose stage vq ran in one go."""
    work = tmp_path_factory.mktemp("encoded") / "work"
    shutil.copytree(prepared, work)
    assert "resumed" not in run_well("vq", "--work", work, "--model", model)
    return work


@pytest.fixture(scope="module")
def killed(prepared: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose stage vq was killed once it had written three parts."""
    work = tmp_path_factory.mktemp("killed") / "work"
    shutil.copytree(prepared, work)
    command = [sys.executable, "-m", "pipelines", "vq", "--work", str(work), "--model", str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(parts_of(work)) < 3:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    assert not (work / "vq").exists()
    return work


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
    rows = ImageRows(encoded / "images", "generation")
    assert codes["image_sha256"].to_pylist() == rows.index["image_sha256"].to_pylist()
    assert len(rows) == ARTWORKS + FIGURES
    encode = vq_encoder(open_model(str(model)))
    for i in (0, INDEX_ROWS, len(rows) - 1):
        assert codes["image_tokens"][i].as_py() == encode(rows.pixels(i, i + 1)[0]).tolist()
    assert not (encoded / ".vq-parts").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(
    killed: Path, encoded: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "work")
    parts = parts_of(tmp_path / "work")
    log = run_well("vq", "--work", tmp_path / "work", "--model", model)
    left = ARTWORKS + FIGURES - INDEX_ROWS * len(parts)
    assert f"vq: resumed after {INDEX_ROWS * len(parts)} of {ARTWORKS + FIGURES} images" in log
    assert f"vq: {left} images in" in log
    assert codes_of(tmp_path / "work") == codes_of(encoded)
    assert not (tmp_path / "work" / ".vq-parts").exists()


@pytest.mark.slow
def test_parts_that_the_disk_lost_are_encoded_again(
    killed: Path, encoded: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "work")
    empty, cut, *parts = parts_of(tmp_path / "work")
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:300])
    log = run_well("vq", "--work", tmp_path / "work", "--model", model)
    assert f"resumed after {INDEX_ROWS * len(parts)} of" in log
    assert codes_of(tmp_path / "work") == codes_of(encoded)


@pytest.mark.slow
def test_parts_of_another_encoder_are_dropped(
    killed: Path, encoded: Path, other: Path, tmp_path: Path
) -> None:
    shutil.copytree(killed, tmp_path / "work")
    assert "resumed" not in run_well("vq", "--work", tmp_path / "work", "--model", other)
    assert not (tmp_path / "work" / ".vq-parts").exists()
    assert codes_of(tmp_path / "work") != codes_of(encoded)


def test_other_weights_run_vq_and_write_again_and_nothing_else(
    model: Path, other: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data", 3, 2)
    build = build_command(tmp_path / "data", tmp_path, model, "--workers", 1, "--model")
    assert "MEAN NOTHING" not in run_well(*build, model)
    first = load_manifest(tmp_path / "shards").vq
    assert first == {"encoder_sha256": open_model(str(model)).vq_encoder_sha256(), "weights": "checkpoint"}

    shutil.copytree(model, tmp_path / "moved")
    assert skipped(run_well(*build, tmp_path / "moved")) == ["ingest", "tokenize", "images", "vq", "write"]
    assert skipped(run_well(*build, other)) == ["ingest", "tokenize", "images"]
    second = load_manifest(tmp_path / "shards").vq
    assert second == {"encoder_sha256": open_model(str(other)).vq_encoder_sha256(), "weights": "checkpoint"}
    assert first != second
    inspected = CliRunner().invoke(shards_main, ["inspect", str(tmp_path / "shards")]).output
    assert f"VQ codes: encoder sha256 {second['encoder_sha256']}, a checkpoint's weights" in inspected


@pytest.mark.slow
def test_random_codes_are_said_to_mean_nothing_and_change_with_the_presets_sizes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "small", CONFIG)
    write_pictures(tmp_path / "data", 3, 2)
    build = build_command(tmp_path / "data", tmp_path, model, "--workers", 1, "--model", "small")
    assert "vq: WARNING: small has no VQ weights" in run_well(*build)
    log = run_well(*build)
    assert "image codes are of random weights, so they MEAN NOTHING" in log
    assert "vq" in skipped(log)
    inspected = CliRunner().invoke(shards_main, ["inspect", str(tmp_path / "shards")]).output
    assert "random weights, so they MEAN NOTHING" in inspected

    # The same weights out of a checkpoint: codes are the same, what is said about them is not.
    assert "vq" not in skipped(run_well(*build[:-1], model))
    vq = load_manifest(tmp_path / "shards").vq
    assert vq is not None
    assert vq["weights"] == "checkpoint"
    monkeypatch.setitem(PRESETS, "small", replace(CONFIG, vq=replace(CONFIG.vq, num_embeddings=CODES + 16)))
    assert "vq" not in skipped(run_well(*build))
    resized = load_manifest(tmp_path / "shards").vq
    assert resized is not None
    assert resized["encoder_sha256"] != vq["encoder_sha256"]


def test_pictures_of_another_size_than_the_models_are_refused(encoded: Path) -> None:
    result = run("vq", "--work", encoded, "--model", "tiny")
    assert result.exit_code == 2
    assert "pictures of 64 pixels, the VQ encoder of tiny takes 384" in result.output
