"""Options: one field gives option, YAML key and help; what is wrong is one line with the way out."""

from pathlib import Path

import pytest
import yaml
from commands import refusal, run_well

from janus.model.janus import PARTS
from janus.model.stages import STAGES, trained_parts
from trainer.cli import main
from trainer.config import FIELDS, RECIPES, load_recipe, resolve


def _recipe(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_field_is_an_option_with_help_and_there_are_few() -> None:
    words = " ".join(run_well(main, "train", "--help").split())
    assert len(FIELDS) <= 40
    for name, option in FIELDS.items():
        assert f"--{name.replace('_', '-')}" in words
        assert option.metadata["help"][:30] in words


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_resolve_by_name_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = resolve(load_recipe(path.stem))
    written = {name: value for name, value in config.asdict().items() if name != "out"}
    assert resolve(load_recipe(_recipe(tmp_path, yaml.safe_dump(written)))) == config
    if path.stem == "radiology":  # as published
        assert (config.stage, config.samples) == (3, {"vqa": 100, "text": 20, "t2i": 80})
        assert config.counts == {"vqa": 5, "text": 1, "t2i": 4}
        assert set(config.sources) == {"medical-vqa", "pubmedqa", "roco"}


def test_stage_gives_defaults_recipe_goes_before_them_and_given_before_all(tmp_path: Path) -> None:
    path = _recipe(tmp_path, "stage: 2\nbeta2: 0.99\nweight_decay: 0.1\n")
    config = resolve({**load_recipe(path), "beta2": 0.9})
    assert config.learning_rate == STAGES[2].learning_rate
    assert (config.beta2, config.weight_decay) == (0.9, 0.1)


@pytest.mark.parametrize(
    ("stage", "steps", "warmup", "counts"),
    [
        (1, 20_000, 600, {"vqa": 2, "t2i": 6}),
        (2, 360_000, 5000, {"vqa": 2, "text": 3, "t2i": 5}),
        (2, 100, 10, {"vqa": 2, "text": 3, "t2i": 5}),
        (3, 80_000, 0, {"vqa": 5, "text": 1, "t2i": 4}),
    ],
)
def test_warm_up_and_batch(stage: int, steps: int, warmup: int, counts: dict[str, int]) -> None:
    config = resolve({"stage": stage, "steps": steps})
    assert (config.warmup_steps, config.counts) == (warmup, counts)
    # It grows to hold the ratio of fixed samples.
    assert resolve({"samples": {"vqa": 100, "text": 21, "t2i": 80}}).batch_size == 201


def test_yaml_reads_values_as_they_are_written(tmp_path: Path) -> None:
    # YAML 1.1 makes 18064 of 5:1:4 (base 60), a text of 1e-3 and false of no.
    path = _recipe(tmp_path, "ratio: 5:1:4\nlearning_rate: 1e-3\ntrain_gen_embed: no\nsources: [a, b]\n")
    config = resolve(load_recipe(path))
    assert config.ratio == {"vqa": 5, "text": 1, "t2i": 4}
    assert (config.learning_rate, config.train_gen_embed, config.sources) == (1e-3, False, ("a", "b"))
    assert load_recipe(_recipe(tmp_path, "ratio: {t2i: 4, vqa: 5}"))["ratio"] == {"t2i": 4, "vqa": 5}
    mixed = resolve(
        load_recipe(_recipe(tmp_path, "ratio: vqa=5,text=1,t2i=4,edit=2\nloss_weight: edit=2.5\n"))
    )
    assert mixed.counts == {"vqa": 5, "text": 1, "t2i": 4, "edit": 2}
    assert mixed.loss_weight == {"edit": 2.5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lerning_rate: 1", "unknown field lerning_rate; did you mean learning_rate?"),
        ("batch-size: 1", "did you mean batch_size?"),
        ("zzzz: 1", "the fields are task, stage"),
        ("steps: many", "steps: 'many' is not"),
        ("steps: 0", "steps: 0 is not"),
        ("task: [text]", "task: expected one value"),
        ("learning_rate: nan", "learning_rate: nan is not"),
        ("learning_rate: .inf", "learning_rate: '.inf' is not"),
        ("learning_rate:", "learning_rate: expected a value"),
        ("beta1: 1.0", "beta1: 1.0 is not"),
        ("mode: eager", "mode: 'eager' is not one of 'graph', 'pynative'"),
        ("stage: 4", "stage: '4' is not one of '1', '2', '3'"),
        ("ratio: 5:1", "ratio: expected 5:1:4 (vqa:text:t2i)"),
        (
            "ratio: {voice: 1}",
            "ratio: expected vqa, text, t2i, edit, interleaved, each at most once, got 'voice'",
        ),
        ("loss_weight: {vqa: 0}", "loss_weight: 0.0 is not"),
        ("loss_weight: t2i=heavy", "loss_weight: 'heavy' is not"),
        ("samples: vqa=-3", "samples: -3 is not"),
        ("samples: vqa=3,vqa=4", "samples: expected vqa, text, t2i, edit, interleaved, each at most once"),
        ("train_gen_embed: maybe", "train_gen_embed: 'maybe' is not"),
        ("- steps", "expected `field: value` lines, got a list"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_recipe_names_file_field_and_what_was_expected(tmp_path: Path, text: str, says: str) -> None:
    path = _recipe(tmp_path, text)
    line = refusal(main, "train", "--config", path)
    assert line.startswith(f"Error: {path}: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "0"], "'--steps': 0 is not"),
        (["--seed", "nan"], "'--seed': 'nan' is not"),
        (["--clip-norm", "inf"], "'--clip-norm': inf is not a finite"),
        (["--batch-size", "7"], "use 10"),
        (["--batch-size", "64"], "use 60 or 70"),
        (["--ratio", "0:0:0"], "every task has 0"),
        (["--dtype", "bfloat16", "--device", "CPU"], "bfloat16 has no kernels on CPU"),
        (["--stage", "1", "--task", "text"], "stage: 1 trains nothing that text passes through"),
        (["--stage", "1", "--ratio", "1:1:3"], "leave text out (--ratio 1:0:3)"),
        (
            ["--config", "nope"],
            "nor one of the recipes demo, edit, interleaved, mixed, own-data, radiology, sample, t2i",
        ),
        (["--task", "vqa", "--samples", "vqa=0"], "vqa=0 leaves nothing"),
        (["--samples", "vqa=0"], "at least one task"),
    ],
)
def test_contradictions_are_refused_in_one_line(arguments: list[str], says: str) -> None:
    assert says in refusal(main, "train", *arguments)


def test_stages_train_what_the_report_says() -> None:
    first, second, third = (trained_parts(stage, train_gen_embed=False) for stage in (1, 2, 3))
    assert first == {"aligner", "gen_aligner", "gen_head"}
    assert second - first == {"llama", "lm_head"}
    assert third - second == {"siglip"}
    assert trained_parts(1, train_gen_embed=True) - first == {"gen_embed"}
    assert trained_parts(3, train_gen_embed=True) == PARTS.keys() - {"vq"}
