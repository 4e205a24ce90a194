"""Reading practice from structured text: glossaries and country profiles."""

from __future__ import annotations

import random

from serving.prompt import PromptPassage
from training.pretraining.corpus import GlossaryEntry
from training.pretraining.reading_tasks import Draft, ReadingExample, arrange

TERM_QUESTIONS = (
    "What is {}?", "What does {} mean?", "Define {}.", "What is meant by {}?", "what is {}", "What are {}?",
    "How is {} defined?", "what does {} do",
)  # fmt: skip
DEFINITION_QUESTIONS = (
    "What is the term for {}?", "What do we call {}?", "What is {} called?", "Which term means {}?", "{}",
    "What is the name for {}?", "what is it called: {}",
)  # fmt: skip
STATEMENTS = ("{t}: {d}.", "{t} is {d}.", "{t} - {d}.", "{t} means {d}.", "The term {t} refers to {d}.")

FIELD_QUESTIONS = {
    "Capital name": ("What is the capital of {}?", "which city is the capital of {}"),
    "Area total": ("What is the total area of {}?", "How large is {}?", "how big is {}"),
    "Coastline": ("How long is the coastline of {}?",),
    "Population total": ("What is the population of {}?", "How many people live in {}?", "population of {}"),
    "Location": ("Where is {} located?", "where is {}"),
    "Climate": ("What is the climate of {}?", "What is the weather like in {}?"),
    "Terrain": ("What is the terrain of {}?", "What does the land of {} look like?"),
    "Elevation highest point": ("What is the highest point in {}?", "which is the highest mountain of {}"),
    "Natural resources": ("What are the natural resources of {}?",),
    "Government type": ("What type of government does {} have?", "How is {} governed?"),
    "Exchange rates Currency": ("What currency is used in {}?", "What is the currency of {}?"),
    "Median age total": ("What is the median age in {}?", "How old is the average person in {}?"),
    "Life expectancy at birth total population": (
        "What is the life expectancy in {}?",
        "How long do people in {} live?",
    ),
    "Internet country code": ("What is the internet country code of {}?",),
    "Airports": ("How many airports does {} have?", "How many airports are there in {}?"),
    "Executive branch head of government": (
        "Who is the head of government of {}?",
        "who leads the government of {}",
    ),
    "Executive branch chief of state": ("Who is the chief of state of {}?", "who is the head of state in {}"),
    "National anthem(s) title": ("What is the national anthem of {}?",),
    "National colors": ("What are the national colors of {}?",),
    "Exports - partners": ("Which countries buy the exports of {}?", "Who does {} export to?"),
    "Exports - commodities": ("What does {} export?", "what are the main exports of {}"),
    "Independence": ("When did {} become independent?", "When did {} gain independence?"),
    "National holiday": ("What is the national holiday of {}?",),
    "Irrigated land": ("How much land is irrigated in {}?",),
    "Population growth rate": ("How fast is the population of {} growing?",),
    "Birth rate": ("What is the birth rate of {}?",),
}
"""Questions people would ask for common fields; other fields are asked by their own name."""


def glossary_questions(
    rng: random.Random,
    glossary: list[GlossaryEntry],
    *,
    num_passages: int,
    entries: int,
    num_questions: int,
    unanswerable: float,
) -> ReadingExample:
    """Return passages of definitions, asked from term to definition and back."""
    start = rng.randrange(len(glossary))
    window = [glossary[(start + offset) % len(glossary)] for offset in range(400)]
    chosen = rng.sample(window, num_passages * entries + 3)
    passages: list[PromptPassage] = []
    for index in range(num_passages):
        lines: list[str] = []
        style = rng.choice(STATEMENTS) if rng.random() < 0.5 else None
        for entry in chosen[index * entries : (index + 1) * entries]:
            lines.append((style or rng.choice(STATEMENTS)).format(t=entry.term, d=entry.definition))
        passages.append(
            PromptPassage(f"p{index}", chosen[index * entries].book, rng.choice((" ", "\n")).join(lines))
        )
    shown = num_passages * entries
    drafts: list[Draft] = []
    for _ in range(num_questions):
        missing = rng.random() < unanswerable
        place = rng.randrange(shown, len(chosen)) if missing else rng.randrange(shown)
        entry = chosen[place]
        if len(entry.definition) <= 110 and rng.random() < 0.5:
            question, answer = rng.choice(TERM_QUESTIONS).format(entry.term), entry.definition
        else:
            words = entry.definition.split()
            keep = max(4, round(len(words) * rng.uniform(0.4, 1.0)))
            first = rng.randint(0, max(0, len(words) - keep))
            described = " ".join(words[first : first + keep])
            question, answer = rng.choice(DEFINITION_QUESTIONS).format(described), entry.term
        drafts.append(Draft(question, None if missing else answer, -1 if missing else place // entries))
    return arrange(rng, passages, drafts)


def _short_value(value: str) -> str:
    """Return what answers a question: the value before the year of its estimate or a note."""
    return value.split(" (")[0].split(";")[0].strip()


def country_questions(
    rng: random.Random,
    countries: dict[str, dict[str, str]],
    *,
    num_passages: int,
    fields: int,
    num_questions: int,
    unanswerable: float,
) -> ReadingExample:
    """Return country profiles that share most fields, so that both country and field must be found."""
    names = rng.sample(sorted(countries), num_passages + 1)
    absent = names.pop()
    wanted = rng.sample(sorted(countries[names[0]]), min(fields, len(countries[names[0]])))
    popular = [field for field in FIELD_QUESTIONS if field in countries[names[0]]]
    wanted = list(dict.fromkeys([*rng.sample(popular, min(len(popular), fields // 2 + 1)), *wanted]))[:fields]
    rng.shuffle(wanted)
    joiner, separator = rng.choice((": ", " is ", ": ")), rng.choice(("\n", ". ", "; "))
    passages: list[PromptPassage] = []
    facts: list[tuple[str, str, str, int]] = []
    for index, name in enumerate(names):
        held = {field: countries[name][field] for field in wanted if field in countries[name]}
        text = separator.join(f"{field}{joiner}{value}" for field, value in held.items())
        lead = rng.choice(("", f"{name}. ", f"Facts about {name}. "))
        passages.append(PromptPassage(f"p{index}", name, lead + text or name))
        facts += [(name, field, _short_value(value), index) for field, value in held.items()]
    facts = [fact for fact in facts if fact[2]]
    drafts: list[Draft] = []
    for _ in range(num_questions):
        name, field, value, index = rng.choice(facts)
        missing = rng.random() < unanswerable
        generic = f"What is the {field.lower()} of {{}}?"
        form = (
            rng.choice(FIELD_QUESTIONS[field]) if field in FIELD_QUESTIONS and rng.random() < 0.8 else generic
        )
        if missing and rng.random() < 0.5:
            others = [other for other in FIELD_QUESTIONS if other not in wanted]
            drafts.append(Draft(rng.choice(FIELD_QUESTIONS[rng.choice(others)]).format(name), None, -1))
        elif missing:
            drafts.append(Draft(form.format(absent), None, -1))
        else:
            drafts.append(Draft(form.format(name), value, index))
    return arrange(rng, passages, drafts)
