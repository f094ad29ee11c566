"""The vqa part: questions on shapes and phantoms, in medical-vqa's JSON and picture folders.

Each question names its picture by number, so that no two pictures share a question and the split can place
each picture freely. As upstream: `<image>` before or after the question, integer answers, conversations of
two turns (on every eighth picture), and a row whose picture is missing.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from pipelines.sample.scenes import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    SHAPES,
    TONES,
    Disc,
    draw_phantom,
    draw_shape,
)

IMAGES = {"shapes": 320, "phantoms": 64}
"""Pictures of each set."""

QUESTIONS = 2
"""Questions on each shape: many pictures with few questions teach more than few with many."""

QuestionAnswer = tuple[str, Any]


def write_medical_vqa(folder: Path, seed: int) -> list[str]:
    """Write both sets; gives their texts."""
    texts: list[str] = []
    first = 1
    for name, draw in (("shapes", _shape), ("phantoms", _phantom)):
        images, rows = folder / name / "images", []
        images.mkdir(parents=True)
        for number in range(first, first + IMAGES[name]):
            random = Random(f"questions:{seed}:{number}")
            image, questions = draw(number, random)
            file = f"picture{number:03d}.{'png' if image.mode == 'RGB' else 'jpg'}"
            image.save(images / file, quality=90)
            turns = [[question] for question in questions]
            if number % 8 == 0:
                turns[-2:] = [[*turns[-2], *turns[-1]]]
            rows += [_row(f"{number:03d}-{i}", file, t, random.random() < 0.5) for i, t in enumerate(turns)]
        first += IMAGES[name]
        if name == "phantoms":
            lacking = [("What is shown in this picture?", "nothing")]
            rows.append(_row("missing-0", "not-there.jpg", lacking, image_first=False))
        (folder / name / "train").mkdir()
        (folder / name / "train" / "dataset.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        texts += [str(turn["value"]) for row in rows for turn in row["conversations"]]
    return texts


def _shape(number: int, random: Random) -> tuple[Image.Image, list[QuestionAnswer]]:
    shape, colour = random.choice(SHAPES), random.choice(list(COLOURS))
    background = random.choice(list(BACKGROUNDS))
    size = random.choice(((160, 160), (176, 128), (128, 176)))
    centre = random.uniform(0.35, 0.65), random.uniform(0.35, 0.65)
    image = draw_shape(shape, colour, background, size, centre, random.uniform(0.2, 0.32))
    other = colour if random.random() < 0.5 else random.choice(list(COLOURS))
    questions: list[QuestionAnswer] = [
        (f"What colour is the shape in picture {number}?", colour),
        (f"Which shape is shown in picture {number}?", f"a {shape}"),
        (f"What is the background of picture {number}?", background),
        (f"Is the shape in picture {number} {other}?", "yes" if other == colour else "no"),
    ]
    return image, random.sample(questions, QUESTIONS)


def _phantom(number: int, random: Random) -> tuple[Image.Image, list[QuestionAnswer]]:
    places = random.sample([(x, y) for x in ("left", "right") for y in (0.3, 0.5, 0.7)], random.randint(0, 3))
    tone = random.choice(list(TONES))
    discs = [
        Disc(COLUMNS[x] + random.uniform(-0.03, 0.03), y, random.uniform(0.07, 0.1), TONES[tone])
        for x, y in places
    ]
    image = draw_phantom((random.randint(136, 184), random.randint(136, 184)), discs)
    questions: list[QuestionAnswer] = [
        (f"Is there a lesion on the {side} in picture {number}?", "yes" if side in dict(places) else "no")
        for side in ("left", "right")
    ]
    questions.append((f"How many lesions are there in picture {number}?", len(places)))
    if places:
        questions.append((f"Are the lesions in picture {number} bright or dark?", tone))
    return image, questions


def _row(key: str, file: str, turns: list[QuestionAnswer], image_first: bool) -> dict:
    conversation: list[dict[str, Any]] = []
    for question, answer in turns:
        conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    question = conversation[0]["value"]
    conversation[0]["value"] = f"<image>\n{question}" if image_first else f"{question}\n<image>"
    return {"id": key, "image": file, "conversations": conversation}
