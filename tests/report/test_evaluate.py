"""`trainer eval` and the small evaluation while training: figures, files, and what a user sees.

Shapes: N states that predict, V classes.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from commands import refusal, run_well
from mindspore import Tensor
from PIL import Image
from runs import train_well
from trainer_shards import CONFIG, SIDE, TOKENS, make_model, make_trainable, shape_of, word_tokenizer

from janus.checkpoint.folder import open_model
from janus.model.janus import Janus
from janus.model.loss import TaskLoss
from janus.prompts import SIGNATURES, Message, encode_samples
from shards.read import ShardSet
from trainer.cli import main
from trainer.evaluate.answers import answer_metrics, commonest, exact_match, token_f1
from trainer.evaluate.pubmedqa import decision_metrics
from trainer.report.records import read_history
from trainer.stream.collate import collate
from trainer.stream.shapes import ImageShape

IMAGE = ImageShape(SIDE, TOKENS, CONFIG.vq.num_embeddings)
TEST_ROWS = 5
DECISIONS = {"train-0": "yes", "test-0": "no", "test-1": "maybe", "test-3": "no", "99": "yes"}


@pytest.mark.parametrize(
    ("prediction", "answer", "equal", "f1"),
    [
        ("The right lung.", "right lung", True, 1.0),
        ("Yes", "yes", True, 1.0),
        ("left lung", "right lung", False, 0.5),
        ("a mass in the right upper lobe", "right lobe", False, 2 * 2 / (5 + 2)),
        ("no no no", "no", False, 0.5),
        ("", "no", False, 0.0),
        ("the", "a", True, 1.0),
        ("chest x-ray", "chest xray", True, 1.0),
        ("  The  Heart, a-b! ", "heart ab", True, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(prediction: str, answer: str, equal: bool, f1: float) -> None:
    assert exact_match(prediction, answer) is equal
    assert token_f1(prediction, answer) == pytest.approx(f1)
    assert token_f1(answer, prediction) == pytest.approx(f1)


def test_closed_and_open_questions_are_kept_apart() -> None:
    answers = ["Yes.", "no", "left lung", "heart"]
    metrics = answer_metrics(["yes", "yes", "right lung", "the heart"], answers)
    assert metrics["exact_match"] == metrics["closed_exact_match"] == metrics["open_exact_match"] == 0.5
    assert metrics["open_f1"] == pytest.approx(0.75)
    assert (metrics["questions"], metrics["closed_questions"], metrics["open_questions"]) == (4, 2, 2)
    assert "closed_f1" not in answer_metrics(["heart"], ["heart"])
    assert commonest(["No", "yes", "no.", "the heart"]) == "no"


def test_decisions_have_the_figures_of_scikit_learn() -> None:
    """accuracy_score and f1_score(average="macro") of these lists, worked out by hand."""
    truth, said = "yes yes no maybe no yes", "yes no no yes no yes"
    metrics = decision_metrics(said.split(), truth.split())
    assert metrics == pytest.approx({"accuracy": 4 / 6, "macro_f1": (4 / 6 + 4 / 5 + 0) / 3})
    assert decision_metrics(["yes"], ["yes"]) == {"accuracy": 1.0, "macro_f1": 1.0}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, shards with a test split, and PubMedQA's list for some of its questions."""
    work = tmp_path_factory.mktemp("work")
    model = make_model(work / "model")
    (model / "preprocessor_config.json").write_text(json.dumps({"image_size": SIDE}))
    make_trainable(
        work / "shards", {"vqa": 7, "text": 4, "t2i": 6, "edit": 3, "interleaved": 3}, test=TEST_ROWS
    )
    (work / "list.json").write_text(json.dumps(DECISIONS))
    return work


TRAIN = ("--model", "model", "--shards", "shards", "--steps", 2, "--mode", "pynative")
"""Without graphs, because other tests hold those to the same numbers."""


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    output = train_well(work, *TRAIN, "--out", "run", "--eval-every", 2)
    assert "evaluation after step 2 · vqa exact_match" in output
    small = [record for record in read_history(work / "run").records if record["kind"] == "eval"]
    assert [record["step"] for record in small] == [0, 2]
    for record in small:
        assert record["metrics"]["vqa"].keys() == {"exact_match", "f1", "questions"}
        assert 0 <= record["metrics"]["t2i"]["token_accuracy"] <= 1
    return work / "run"


@pytest.fixture(scope="module")
def evaluated(work: Path, run: Path) -> tuple[dict, pl.DataFrame, Path]:
    """(figures, predictions, folder) of an evaluation of the run on the test split."""
    options = ["--split", "test", "--batch", 2, "--pictures", 3, "--max-tokens", 6]
    content = _eval(run, *options, "--pubmedqa-test", work / "list.json")
    return content, pl.read_ipc(run / "eval" / "test.arrow"), run / "eval"


def _eval(out: Path, *arguments: object) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        output = run_well(main, "eval", out.name, *arguments)
        return json.loads(Path(output.split("written: ")[1].split(",")[0]).read_text())


@pytest.fixture(scope="module")
def model(run: Path) -> Janus:
    return open_model(str(run / "checkpoints" / "step-000002")).build()


@pytest.mark.parametrize("task", SIGNATURES)
def test_each_sample_has_the_loss_of_training(work: Path, model: Janus, evaluated: tuple, task: str) -> None:
    content, predictions, _ = evaluated
    rows, loss = ShardSet.open(work / "shards").rows("test", task), TaskLoss(model, SIGNATURES[task])
    of_task = predictions.filter(pl.col("part") == task)
    assert of_task["sample_id"].to_list() == rows.column("sample_id").to_pylist()
    total = tokens = 0
    for i, nll in enumerate(of_task["nll"]):
        block, shape = rows.block(np.array([i])), shape_of([rows.read(i)], IMAGE)
        (batch,) = collate(task, block, [1], shape, word_tokenizer().special, held_out=True)
        expected = float(loss(*map(Tensor, batch.inputs)).asnumpy())
        assert nll * batch.supervised == pytest.approx(expected, abs=1e-3)
        total, tokens = total + expected, tokens + batch.supervised
    figures = content["metrics"][task]
    assert figures["loss"] == pytest.approx(total / tokens, abs=1e-4)
    assert (figures["samples"], figures["tokens"]) == (TEST_ROWS, tokens)
    assert 0 <= figures["token_accuracy"] <= 1


def test_figures_are_those_of_the_predictions_and_pictures_are_drawn(work: Path, evaluated: tuple) -> None:
    content, predictions, folder = evaluated
    vqa, figures = predictions.filter(pl.col("part") == "vqa"), content["metrics"]["vqa"]
    assert (vqa.height, vqa["prediction"].null_count()) == (TEST_ROWS, 0)
    assert figures["exact_match"] == vqa["correct"].mean()
    assert figures["f1"] == pytest.approx(vqa["score"].mean())
    assert content["baseline"]["vqa"]
    assert "baseline_exact_match" in figures
    assert predictions.filter(pl.col("part") == "t2i")["correct"].null_count() == TEST_ROWS
    assert content["model"].endswith("checkpoints/step-000002")
    for name, rows in (("pictures", 2), ("edits", 3)):
        picture = Image.open(folder / content[name])
        assert (picture.size, picture.text["seed"]) == ((3 * SIDE, rows * SIDE), "0")
        assert sum(name.startswith("prompt ") for name in picture.text) == 3
    # Above an edit stands what the user showed.
    shown = ShardSet.open(work / "shards").rows("test", "edit").read(0).images[-1]
    np.testing.assert_array_equal(np.asarray(picture)[:SIDE, :SIDE], shown)
    files = {content["pictures"], content["edits"], "test.arrow", "test.json"}
    assert {path.name for path in folder.iterdir()} == files


def test_pubmedqa_is_answered_by_the_likeliest_word(model: Janus, evaluated: tuple) -> None:
    """Each decision is one token here, so the logits behind the prompt say what must come out."""
    content, predictions, _ = evaluated
    answered = predictions.filter(pl.col("part") == "pubmedqa")
    listed = {f"pubmedqa/{key}": answer for key, answer in DECISIONS.items() if key != "99"}
    assert dict(answered.select("sample_id", "answer").iter_rows()) == listed
    tokenizer, loss, words = word_tokenizer(), TaskLoss(model, SIGNATURES["text"]), ["yes", "no", "maybe"]
    ids = [ids[0] for ids in tokenizer.encode_texts(words)]
    for prompt, prediction, score in answered.select("prompt", "prediction", "score").rows():
        (sample,) = encode_samples(tokenizer, [[Message("user", prompt), Message("assistant", "")]], 0)
        flat = np.arange(len(sample.input_ids), dtype=np.int32)
        arrays = [flat[-1:], sample.input_ids, flat, flat[None], flat, np.ones_like(flat)[None]]
        logits_V = loss.logits(*map(Tensor, arrays)).asnumpy()[0]
        shares = np.exp(logits_V[ids] - logits_V[ids].max())
        assert prediction == words[int(shares.argmax())]
        assert score == pytest.approx(shares.max() / shares.sum(), abs=1e-4)
    figures = content["metrics"]["pubmedqa"]
    assert figures["accuracy"] == answered["correct"].mean()
    unseen = answered.filter(pl.col("split") != "train")
    assert figures["unseen_accuracy"] == pytest.approx(unseen["correct"].mean())
    assert (figures["samples"], figures["asked"], figures["in_train"]) == (4, 5, 1)
    assert content["baseline"]["pubmedqa"] == "no"
    assert figures["baseline_accuracy"] == 0.5


@pytest.mark.slow
def test_asking_changes_nothing_and_validation_is_evaluated_alike(work: Path, run: Path) -> None:
    train_well(work, *TRAIN, "--out", "plain")
    records, others = (read_history(work / name).records for name in ("run", "plain"))
    one, other = ([r["loss"] for r in of if r["kind"] == "step"] for of in (records, others))
    assert one == other
    assert "eval" not in {record["kind"] for record in others}
    model = ["--model", run / "checkpoints" / "step-000002", "--shards", work / "shards"]
    content = _eval(work / "elsewhere", *model, "--pictures", 0)
    assert content["pictures"] is None
    last = next(record for record in reversed(records) if record["kind"] == "validation")
    for task, loss in last["loss_per_task"].items():
        assert content["metrics"][task]["loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["WORK/nothing"], "holds no run"),
        (["WORK/out", "--model", "WORK/model"], "holds no run"),
        (["WORK/out", "--model", "nowhere", "--shards", "WORK/shards"], "neither a folder nor a preset"),
        (["WORK/out", "--model", "WORK/model", "--shards", "WORK/absent"], "absent"),
        (["WORK/o", "--model", "WORK/model", "--shards", "WORK/untested", "--split", "test"], "no such rows"),
        (["OUT", "--pubmedqa-test", "WORK/absent.json"], "absent.json: no such file"),
        (["OUT", "--pubmedqa-test", "WORK/perhaps.json"], "'perhaps' is none of yes, no, maybe"),
        (["OUT", "--pubmedqa-test", "WORK/other.json"], "holds none of its 1 questions"),
    ],
)
def test_mistakes_are_one_line(work: Path, arguments: list[str], says: str) -> None:
    (work / "perhaps.json").write_text('{"1": "perhaps"}')
    (work / "other.json").write_text('{"1": "yes"}')
    if "WORK/untested" in arguments:
        make_trainable(work / "untested", {"text": 3})
    if arguments[0] == "OUT":
        arguments = ["WORK/out", "--model", "WORK/model", "--shards", "WORK/shards", *arguments[1:]]
    assert says in refusal(main, "eval", *[argument.replace("WORK", str(work)) for argument in arguments])
