"""The sample's raw files, a function per dataset; each gives its texts, for the tokenizer to learn from."""

import io
import json
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

import pipelines.sample.scenes as scenes
from pipelines.sample.scenes import COLUMNS, ROWS, TONES

WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
CLASSES = WORDS["classes"]

DRUG_ROWS = 640
ARTWORK_SETS = {"tiles": 50, "glass": 34}  # pictures of each, as in the next two
ROCO_SPLITS = {"train": 16, "validation": 20, "test": 4}
VQA_SETS = {"shapes": 320, "phantoms": 64}
QUESTIONS = 2
"""Questions on each shape: many pictures with few questions teach more than few with many."""

_CONTEXT = ("contexts", "labels", "meshes", "reasoning_required_pred", "reasoning_free_pred")
PUBMEDQA_SCHEMA = pa.schema(
    {
        "pubid": pa.int32(),
        "question": pa.string(),
        "context": pa.struct(dict.fromkeys(_CONTEXT, pa.list_(pa.string()))),
        **dict.fromkeys(("long_answer", "final_decision"), pa.string()),
    }
)
_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ROCO_SCHEMA = pa.schema({"image": _IMAGE, "image_id": pa.string(), "caption": pa.string()})


def write_pubmedqa(folder: Path, seed: int) -> list[str]:
    """Questions about invented drugs.

    A drug's ending says what it treats, its first letter when to take it: rules that a language model can
    learn from some of the drugs and apply to the others.
    """
    random = Random(f"facts:{seed}")
    stems = ["".join(pair) + "r" for pair in product(WORDS["syllables"], repeat=2)]
    drugs = random.sample([(stem, ending) for stem in stems for ending in CLASSES], DRUG_ROWS)
    rows = [_drug_row(10_000_000 + number, *drug, random) for number, drug in enumerate(drugs)]
    (folder / "pqa_labeled").mkdir(parents=True)
    path = folder / "pqa_labeled" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, PUBMEDQA_SCHEMA), path)
    return [row[name] for row in rows for name in ("question", "long_answer")]


def _drug_row(pubid: int, stem: str, ending: str, random: Random) -> dict[str, Any]:
    drug = (stem + ending).capitalize()
    kind, condition = CLASSES[ending]
    if random.choice((True, False)):
        named = condition if random.random() < 0.5 else random.choice([c for _, c in CLASSES.values()])
        yes = named == condition
        question = f"Does {drug} relieve {named}?"
        answer = f"It relieves {condition}{'' if yes else f', not {named}'}."
    else:
        yes = drug[0] < "M"
        question = f"Is {drug} taken in the morning?"
        answer = f"Patients with {condition} take it in the {'morning' if yes else 'evening'}."
    decision = "yes" if yes else "no"
    return {
        "pubid": pubid,
        "question": question,
        "context": {
            "contexts": [f"{drug} is {kind}.", f"Patients with {condition} were given {drug}."],
            "labels": ["BACKGROUND", "RESULTS"],
            "meshes": [condition.capitalize(), "Humans"],
            "reasoning_required_pred": list(decision),
            "reasoning_free_pred": list(decision),
        },
        "long_answer": f"{drug} is {kind}. {answer}",
        "final_decision": decision,
    }


def write_artwork(folder: Path, seed: int) -> list[str]:
    """Captioned scenes."""
    shuffled = iter(scenes.shuffled_scenes(seed))
    captions: list[str] = []
    for name, pictures in ARTWORK_SETS.items():
        for inner in ("images", "csvfile"):
            (folder / name / inner).mkdir(parents=True)
        table = []
        for number, scene in enumerate(islice(shuffled, pictures)):
            scene.draw().save(folder / name / "images" / f"{number}.png")
            table.append((f"./{name}/images/{number}.png", scene.caption))
        csv = pl.DataFrame(table, ["image_path", "text_en"], orient="row")
        csv.write_csv(folder / name / "csvfile" / "image_text_en.csv")
        captions += csv["text_en"].to_list()
    return captions


def write_roco(folder: Path, seed: int) -> list[str]:
    """Captioned phantoms. No caption is used twice, so ROCO's own splits share nothing."""
    places = list(product(ROWS, COLUMNS))
    pairs = [pair for pair in product(places, places) if pair[0] < pair[1]]
    phantoms = list(product(pairs, product(TONES, TONES)))
    drawn = iter(Random(f"roco:{seed}").sample(phantoms, sum(ROCO_SPLITS.values())))
    captions = []
    (folder / "data").mkdir(parents=True)
    for split, pictures in ROCO_SPLITS.items():
        rows = [_roco_row(f"SAMPLE_{split}_{number:05d}", *next(drawn)) for number in range(pictures)]
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows, ROCO_SCHEMA), path)
        captions += [row["caption"] for row in rows]
    return captions


def _roco_row(key: str, places: tuple, tones: tuple[str, str]) -> dict[str, Any]:
    """One phantom with two discs. Captions begin with a blank, as they do upstream."""
    placed = [(y, x, tone) for (y, x), tone in zip(places, tones, strict=True)]
    data = io.BytesIO()
    discs = [(COLUMNS[x], ROWS[y], 0.1, TONES[tone]) for y, x, tone in placed]
    scenes.draw_phantom((160, 144), discs).save(data, "JPEG", quality=90)
    image = {"bytes": data.getvalue(), "path": f"{key}.jpg"}
    caption = " and ".join(f"a {tone} disc at the {y} {x}" for y, x, tone in placed)
    return {"image": image, "image_id": key, "caption": f" Phantom with {caption}."}


def write_medical_vqa(folder: Path, seed: int) -> list[str]:
    """Questions on shapes and phantoms.

    Each question names its picture by number, so that no two pictures share a question and the split can
    place each picture freely. As upstream: `<image>` before or after the question, integer answers,
    conversations of two turns (on every eighth picture), and a row whose picture is missing.
    """
    texts: list[str] = []
    numbers = iter(range(1, 1 + sum(VQA_SETS.values())))
    for name, draw in (("shapes", _shape), ("phantoms", _phantom)):
        images, rows = folder / name / "images", []
        images.mkdir(parents=True)
        for number in islice(numbers, VQA_SETS[name]):
            random = Random(f"questions:{seed}:{number}")
            image, questions = draw(number, random)
            file = f"picture{number:03d}.{'png' if image.mode == 'RGB' else 'jpg'}"
            image.save(images / file, quality=90)
            turns = [[question] for question in questions]
            if number % 8 == 0:
                turns[-2:] = [[*turns[-2], *turns[-1]]]
            rows += [_vqa_row(f"{number:03d}-{i}", file, t, random.random()) for i, t in enumerate(turns)]
        if name == "phantoms":
            rows.append(
                _vqa_row("missing-0", "not-there.jpg", [("What is shown in this picture?", "nothing")])
            )
        (folder / name / "train").mkdir()
        (folder / name / "train" / "dataset.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        texts += [str(turn["value"]) for row in rows for turn in row["conversations"]]
    return texts


QuestionAnswer = tuple[str, Any]


def _shape(number: int, random: Random) -> tuple[Image.Image, list[QuestionAnswer]]:
    colours, backgrounds = list(scenes.COLOURS), list(scenes.BACKGROUNDS)
    shape, colour, background = map(random.choice, (scenes.SHAPES, colours, backgrounds))
    size = random.choice(((160, 160), (176, 128), (128, 176)))
    centre = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65)
    image = scenes.draw_shape(shape, colour, background, size, centre, random.uniform(0.2, 0.32))
    other = colour if random.random() < 0.5 else random.choice(colours)
    questions = [
        (f"What colour is the shape in picture {number}?", colour),
        (f"Which shape is shown in picture {number}?", f"a {shape}"),
        (f"What is the background of picture {number}?", background),
        (f"Is the shape in picture {number} {other}?", "yes" if other == colour else "no"),
    ]
    return image, random.sample(questions, QUESTIONS)


def _phantom(number: int, random: Random) -> tuple[Image.Image, list[QuestionAnswer]]:
    sides = ("left", "right")
    places = random.sample(list(product(sides, (0.3, 0.5, 0.7))), random.randint(0, 3))
    tone = random.choice(list(TONES))
    discs = [
        (COLUMNS[x] + random.uniform(-0.03, 0.03), y, random.uniform(0.07, 0.1), TONES[tone])
        for x, y in places
    ]
    image = scenes.draw_phantom((random.randint(136, 184), random.randint(136, 184)), discs)
    questions: list[QuestionAnswer] = [
        (f"Is there a lesion on the {side} in picture {number}?", "yes" if side in dict(places) else "no")
        for side in sides
    ]
    questions.append((f"How many lesions are there in picture {number}?", len(places)))
    if places:
        questions.append((f"Are the lesions in picture {number} bright or dark?", tone))
    return image, questions


def _vqa_row(key: str, file: str, turns: list[QuestionAnswer], place: float = 1.0) -> dict[str, Any]:
    """place: the picture comes first below 0.5, else after the question."""
    speakers = ("human", "gpt")
    conversation = [
        {"from": who, "value": text} for turn in turns for who, text in zip(speakers, turn, strict=True)
    ]
    question = conversation[0]["value"]
    conversation[0]["value"] = f"<image>\n{question}" if place < 0.5 else f"{question}\n<image>"
    return {"id": key, "image": file, "conversations": conversation}
