"""The vqa part: questions on shapes and phantoms, in medical-vqa's JSON and picture folders.

Each question names its picture by number, so that no two pictures share a question and every picture
can stand on its own side of the split. As upstream: `<image>` before or after the question, integer
answers, a few conversations of two turns, and a row whose picture is not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from pipelines.sample.draw import BACKGROUNDS, COLOURS, COLUMNS, SHAPES, TONES, Disc, draw_phantom, draw_shape

IMAGES = {"shapes": 320, "phantoms": 64}
"""Pictures of each set."""

ASKED = 2
"""Questions on each shape: many pictures with few questions teach more than few with many."""

QuestionAnswer = tuple[str, Any]


def write_medical_vqa(folder: Path, seed: int) -> list[str]:
    """Write both sets; gives their texts."""
    texts: list[str] = []
    number = 0
    for name, make in (("shapes", _shape), ("phantoms", _phantom)):
        images, rows = folder / name / "images", []
        images.mkdir(parents=True)
        for _ in range(IMAGES[name]):
            number += 1
            random = Random(f"questions:{seed}:{number}")
            file, asked = make(number, images, random)
            rows += _rows(number, file, asked, random)
        if name == "phantoms":
            rows.append(
                _row("missing-0", "not-there.jpg", [("What is shown in this picture?", "nothing")], False)
            )
        (folder / name / "train").mkdir()
        (folder / name / "train" / "dataset.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        texts += [str(turn["value"]) for row in rows for turn in row["conversations"]]
    return texts


def _shape(number: int, images: Path, random: Random) -> tuple[str, list[QuestionAnswer]]:
    shape, colour = random.choice(SHAPES), random.choice(list(COLOURS))
    background = random.choice(list(BACKGROUNDS))
    size = random.choice(((160, 160), (176, 128), (128, 176)))
    centre = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65)
    image = draw_shape(shape, colour, background, size, centre, random.uniform(0.2, 0.32))
    file = f"picture{number:03d}.png"
    image.save(images / file)
    other = colour if random.random() < 0.5 else random.choice(list(COLOURS))
    questions: list[QuestionAnswer] = [
        (f"What colour is the shape in picture {number}?", colour),
        (f"Which shape is shown in picture {number}?", f"a {shape}"),
        (f"What is the background of picture {number}?", background),
        (f"Is the shape in picture {number} {other}?", "yes" if other == colour else "no"),
    ]
    return file, random.sample(questions, ASKED)


def _phantom(number: int, images: Path, random: Random) -> tuple[str, list[QuestionAnswer]]:
    places = random.sample([(x, y) for x in ("left", "right") for y in (0.3, 0.5, 0.7)], random.randint(0, 3))
    tone = random.choice(list(TONES))
    discs = [
        Disc(COLUMNS[x] + random.uniform(-0.03, 0.03), y, random.uniform(0.07, 0.1), TONES[tone])
        for x, y in places
    ]
    size = random.randint(136, 184), random.randint(136, 184)
    file = f"picture{number:03d}.jpg"
    draw_phantom(size, discs).save(images / file, quality=90)
    sides = {side: "yes" if any(x == side for x, _ in places) else "no" for side in ("left", "right")}
    asked: list[QuestionAnswer] = [
        (f"Is there a lesion on the left in picture {number}?", sides["left"]),
        (f"Is there a lesion on the right in picture {number}?", sides["right"]),
        (f"How many lesions are there in picture {number}?", len(places)),
    ]
    return file, [*asked, (f"Are the lesions in picture {number} bright or dark?", tone)] if places else asked


def _rows(number: int, file: str, asked: list[QuestionAnswer], random: Random) -> list[dict]:
    """A row per question; every eighth picture has its last two questions in one conversation."""
    turns = [[one] for one in asked]
    if number % 8 == 0:
        turns[-2:] = [[*turns[-2], *turns[-1]]]
    return [
        _row(f"{number:03d}-{i}", file, conversation, random.random() < 0.5)
        for i, conversation in enumerate(turns)
    ]


def _row(key: str, file: str, asked: list[QuestionAnswer], image_first: bool) -> dict:
    conversation: list[dict[str, Any]] = []
    for question, answer in asked:
        conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    first = conversation[0]["value"]
    conversation[0]["value"] = f"<image>\n{first}" if image_first else f"{first}\n<image>"
    return {"id": key, "image": file, "conversations": conversation}
