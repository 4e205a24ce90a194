"""A joint job of eleven facts and two tiny models, as a user would write it."""

from __future__ import annotations

import json
from pathlib import Path

CITIES = ("Lisbon", "Quito", "Oslo", "Accra", "Hanoi", "Sofia", "Riga", "Lima", "Doha", "Bern", "Cairo")
OWNERS = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jun", "Kim")


def write_lookup_set(path: Path) -> Path:
    """Write eleven facts and a question of each in SQuAD's format."""
    articles = [
        {
            "title": city,
            "paragraphs": [
                {
                    "context": f"The keeper of the {city} lighthouse is {owner}.",
                    "qas": [
                        {
                            "id": f"q{index}",
                            "question": f"Who keeps the lighthouse of {city}?",
                            "answers": [{"text": owner, "answer_start": 33 + len(city)}],
                            "is_impossible": False,
                        }
                    ],
                }
            ],
        }
        for index, (city, owner) in enumerate(zip(CITIES, OWNERS, strict=True))
    ]
    path.write_text(json.dumps({"version": "2.0", "data": articles}), encoding="utf-8")
    return path


def job_toml(encoder: Path, reader: Path, data: Path, out: Path, steps: int = 6) -> str:
    """Return the TOML of a joint job."""
    return f"""
kind = "joint"
out = "{out}"

[data]
dev_share = 0.3

[data.train]
kind = "squad"
path = "{data}"

[joint]
seed = 3

[joint.encoder]
model = "{encoder}"
max_passage_tokens = 64

[joint.reader]
model = "{reader}"
max_passage_tokens = 64
max_answer_tokens = 8

[joint.search]
k = 3

[joint.refresh]
mode = "async"
interval_steps = 3
delay_steps = 2

[joint.optim]
steps = {steps}
batch_questions = 4
encoder_lr = 1e-3
reader_lr = 1e-3
warmup_steps = 1

[joint.checkpoint]
every_steps = 2

[joint.evaluation]
max_new_tokens = 4
"""
