"""The text part: questions about invented drugs, in PubMedQA's parquet columns.

A drug's ending says what it treats, its first letter when to take it: rules that a language model can learn
from some of the drugs and apply to the others.
"""

from itertools import product
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 640

CLASSES = {
    "avir": ("an antiviral", "influenza"),
    "olol": ("a beta blocker", "high blood pressure"),
    "azole": ("an antifungal", "ringworm"),
    "cillin": ("an antibiotic", "pneumonia"),
    "statin": ("a lipid reducer", "high cholesterol"),
    "formin": ("a sugar reducer", "diabetes"),
    "triptan": ("a vessel narrower", "migraine"),
    "caine": ("an anaesthetic", "local pain"),
}
SYLLABLES = ("ba", "do", "fe", "gi", "ka", "lu", "mo", "ne", "pi", "ra", "so", "tu", "ve", "zi")

CONTEXT = ("contexts", "labels", "meshes", "reasoning_required_pred", "reasoning_free_pred")
SCHEMA = pa.schema(
    {
        "pubid": pa.int32(),
        "question": pa.string(),
        "context": pa.struct(dict.fromkeys(CONTEXT, pa.list_(pa.string()))),
        **dict.fromkeys(("long_answer", "final_decision"), pa.string()),
    }
)


def write_pubmedqa(folder: Path, seed: int) -> list[str]:
    """Write `pqa_labeled`; gives its texts."""
    random = Random(f"facts:{seed}")
    stems = ["".join(pair) + "r" for pair in product(SYLLABLES, SYLLABLES)]
    drugs = random.sample([(stem, ending) for stem in stems for ending in CLASSES], ROWS)
    rows = [_row(10_000_000 + number, stem, ending, random) for number, (stem, ending) in enumerate(drugs)]
    (folder / "pqa_labeled").mkdir(parents=True)
    path = folder / "pqa_labeled" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    return [text for row in rows for text in (row["question"], row["long_answer"])]


def _row(pubid: int, stem: str, ending: str, random: Random) -> dict:
    drug = (stem + ending).capitalize()
    kind, condition = CLASSES[ending]
    question, answer, decision = random.choice((_relief, _time))(drug, condition, random)
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


def _relief(drug: str, condition: str, random: Random) -> tuple[str, str, str]:
    named = condition if random.random() < 0.5 else random.choice([c for _, c in CLASSES.values()])
    question = f"Does {drug} relieve {named}?"
    if named == condition:
        return question, f"It relieves {condition}.", "yes"
    return question, f"It relieves {condition}, not {named}.", "no"


def _time(drug: str, condition: str, random: Random) -> tuple[str, str, str]:
    when, decision = ("morning", "yes") if drug[0] < "M" else ("evening", "no")
    question = f"Is {drug} taken in the morning?"
    return question, f"Patients with {condition} take it in the {when}.", decision
