"""More steps on resume: those that were planned keep their numbers, or it is said that they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import make_work, records
from trainer_shards import CODES, SIDE, TOKENS

from janus.tokens import load_tokenizer
from shards.read import ShardSet
from trainer.cli import main
from trainer.config import resolve
from trainer.stream.batch import ImageShape
from trainer.stream.feed import Feed

GIVEN = {"task": "text", "batch_size": 2, "eval_samples": 0}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("work"))


def _feed(work: Path, steps: int, begun: dict | None = None) -> Feed:
    special = load_tokenizer(work / "shards" / "tokenizer").special
    image = ImageShape(SIDE, TOKENS, CODES)
    return Feed(ShardSet.open(work / "shards"), resolve({**GIVEN, "steps": steps}), special, image, begun)


def _sizes(feed: Feed) -> dict:
    return {task: shape.sizes for task, shape in feed.shapes.items()}


def test_batches_keep_the_sizes_they_began_with_where_those_hold(work: Path) -> None:
    one, two = _sizes(_feed(work, 1)), _sizes(_feed(work, 2))
    assert one != two  # the second step has a longer sample
    assert _sizes(_feed(work, 9, two)) == two
    assert _sizes(_feed(work, 1, two)) == two  # fewer steps change nothing either
    assert _sizes(_feed(work, 2, one)) == two  # and nothing is ever cut
    for held, natural in zip(
        _feed(work, 1, two).step(1).batches, _feed(work, 2).step(1).batches, strict=True
    ):
        assert [a.tolist() for a in held[1].inputs] == [a.tolist() for a in natural[1].inputs]


def _train(work: Path, *arguments: object) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        result = CliRunner().invoke(main, ["train", "--out", "run", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_steps_that_need_larger_batches_are_told_and_accepted_knowingly(work: Path) -> None:
    given = ["--task", "text", "--batch-size", 2, "--eval-samples", 0, "--mode", "pynative"]
    code, output = _train(work, *given, "--model", "model", "--shards", "shards", "--steps", 1)
    assert code == 0, output
    before = records(work / "run")
    code, output = _train(work, "--resume", "--steps", 3)
    assert code == 2
    assert output.count("\n") == 1
    assert "shapes was {'text': {'rows': 2, 'length': 48, 'tokens': 96, 'states': 16}}, now {" in output
    assert "more steps need larger batches" in output
    assert records(work / "run") == before
    code, output = _train(work, "--resume", "--steps", 3, "--resume-with", "shapes")
    assert code == 0, output
    (noted,) = (record for record in records(work / "run") if record["kind"] == "changed")
    assert (noted["step"], noted["field"]) == (1, "shapes")
    # From here on the batches are large enough: no more is asked.
    code, output = _train(work, "--resume", "--steps", 5)
    assert code == 0, output
    state = json.loads((work / "run" / "checkpoints" / "step-000005" / "state.json").read_text())
    assert [change["field"] for change in state["changes"]] == ["shapes"]
