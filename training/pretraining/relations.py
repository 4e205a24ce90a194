"""Relations of the synthetic facts: how each is stated and asked. Pure data.

`{s}` is the subject and `{o}` the object; both are random at each use, so that only the passage can answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["person", "place", "year", "number", "thing", "word", "group", "date", "money", "term"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact."""

    subject: Kind
    """What the fact is about."""
    object: Kind
    """What it says."""
    statements: tuple[str, ...]
    """Ways to state it."""
    ask_object: tuple[str, ...]
    """Questions whose answer is the object."""
    ask_subject: tuple[str, ...] = ()
    """Questions whose answer is the subject."""


def _relation(
    subject: Kind, object_: Kind, statements: str, ask_object: str, ask_subject: str = ""
) -> Relation:
    split = lambda text: tuple(part.strip() for part in text.split("|") if part.strip())  # noqa: E731
    return Relation(subject, object_, split(statements), split(ask_object), split(ask_subject))


RELATIONS: tuple[Relation, ...] = (
    _relation(
        "person",
        "place",
        "{s} was born in {o}.|{o} is the birthplace of {s}.|Born in {o}, {s} later left.",
        "Where was {s} born?|What is the birthplace of {s}?|In which city was {s} born?|where is {s} from",
        "Who was born in {o}?|Who comes from {o}?",
    ),
    _relation(
        "person",
        "year",
        "{s} was born in {o}.|{s} (born {o}) was well known.|In {o}, {s} was born.",
        "When was {s} born?|In what year was {s} born?|What is the birth year of {s}?",
        "Who was born in {o}?",
    ),
    _relation(
        "person",
        "year",
        "{s} died in {o}.|The death of {s} came in {o}.|In {o} {s} died.",
        "When did {s} die?|In what year did {s} die?|what year did {s} die",
        "Who died in {o}?",
    ),
    _relation(
        "person",
        "person",
        "{s} married {o}.|{o} was the wife of {s}.|{s} was the husband of {o}.",
        "Who did {s} marry?|Who was the wife of {s}?|What was the name of the wife of {s}?",
        "Who married {o}?|Who was the husband of {o}?",
    ),
    _relation(
        "person",
        "person",
        "{s} is the daughter of {o}.|{o} is the father of {s}.|The father of {s} is {o}.",
        "Who is the father of {s}?|Whose daughter is {s}?",
        "Who is the daughter of {o}?",
    ),
    _relation(
        "person",
        "group",
        "{s} works for {o}.|{s} is employed by {o}.|{o} employs {s}.",
        "Who does {s} work for?|Which company employs {s}?|Where does {s} work?",
        "Who works for {o}?|Whom does {o} employ?",
    ),
    _relation(
        "person",
        "thing",
        "{s} wrote {o}.|{o} was written by {s}.|The author of {o} is {s}.",
        "What did {s} write?|Which book did {s} write?",
        "Who wrote {o}?|Who is the author of {o}?|who was {o} written by",
    ),
    _relation(
        "person",
        "thing",
        "{s} invented the {o}.|The {o} was invented by {s}.|The inventor of the {o} was {s}.",
        "What did {s} invent?|What was invented by {s}?",
        "Who invented the {o}?|Who was the inventor of the {o}?",
    ),
    _relation(
        "person",
        "thing",
        "{s} discovered {o}.|{o} was discovered by {s}.|The discovery of {o} is due to {s}.",
        "What did {s} discover?",
        "Who discovered {o}?|By whom was {o} discovered?",
    ),
    _relation(
        "person",
        "place",
        "{s} lives in {o}.|The home of {s} is in {o}.|{s} moved to {o}.",
        "Where does {s} live?|In which town is the home of {s}?|Where is {s} now?",
        "Who lives in {o}?",
    ),
    _relation(
        "person",
        "word",
        "{s} studied {o}.|The field of {s} was {o}.|{s} was a student of {o}.",
        "What did {s} study?|What was the field of {s}?|Which subject did {s} study?",
        "Who studied {o}?",
    ),
    _relation(
        "person",
        "word",
        "{s} plays the {o} on stage.|{s} is known for playing {o}.",
        "What does {s} play?|what is {s} known for playing",
        "Who plays {o}?|who plays the {o} on stage",
    ),
    _relation(
        "group",
        "year",
        "{s} was founded in {o}.|{s} was established in {o}.|Founded in {o}, {s} grew quickly.",
        "When was {s} founded?|In what year was {s} established?|what year did {s} start",
        "What was founded in {o}?|Which organization was established in {o}?",
    ),
    _relation(
        "group",
        "person",
        "{s} was founded by {o}.|{o} founded {s}.|The founder of {s} was {o}.",
        "Who founded {s}?|Who was the founder of {s}?|who started {s}",
        "What did {o} found?|Which organization was founded by {o}?",
    ),
    _relation(
        "group",
        "place",
        "{s} is based in {o}.|The headquarters of {s} are in {o}.|{s} has its seat in {o}.",
        "Where is {s} based?|Where are the headquarters of {s}?|In what city is {s}?",
        "Which company is based in {o}?|What has its headquarters in {o}?",
    ),
    _relation(
        "group",
        "number",
        "{s} has {o} members.|There are {o} members in {s}.|{s} counts {o} members.",
        "How many members does {s} have?|How many members are in {s}?|how many people belong to {s}",
        "Which group has {o} members?",
    ),
    _relation(
        "group",
        "person",
        "{s} is led by {o}.|The president of {s} is {o}.|{o} is the head of {s}.",
        "Who leads {s}?|Who is the president of {s}?|Who is the head of {s}?",
        "What does {o} lead?",
    ),
    _relation(
        "place",
        "place",
        "{s} is the capital of {o}.|The capital of {o} is {s}.|{o} has its capital at {s}.",
        "What country has {s} as its capital?|{s} is the capital of what country?",
        "What is the capital of {o}?|what is the capital city of {o}",
    ),
    _relation(
        "place",
        "number",
        "{s} has a population of {o}.|About {o} people live in {s}.|The population of {s} is {o}.",
        "What is the population of {s}?|How many people live in {s}?|how many inhabitants does {s} have",
        "Which town has {o} people?",
    ),
    _relation(
        "place",
        "place",
        "{s} is located in {o}.|{s} lies in {o}.|{s} is a region of {o}.",
        "Where is {s} located?|In what country is {s}?|what is {s} a region of",
        "Which region lies in {o}?",
    ),
    _relation(
        "place",
        "word",
        "The people of {s} speak {o}.|In {s} the language is {o}.|{o} is spoken in {s}.",
        "What language is spoken in {s}?|What do the people of {s} speak?",
        "Where is {o} spoken?",
    ),
    _relation(
        "place",
        "person",
        "{s} was conquered by {o}.|{o} conquered {s}.|{o} took the city of {s}.",
        "Who conquered {s}?|By whom was {s} conquered?|who took {s}",
        "What did {o} conquer?",
    ),
    _relation(
        "place",
        "thing",
        "{s} is famous for its {o}.|The main product of {s} is {o}.|{s} exports {o}.",
        "What is {s} famous for?|What does {s} export?|What is the main product of {s}?",
        "Which place is famous for its {o}?|Who exports {o}?",
    ),
    _relation(
        "place",
        "year",
        "{s} became independent in {o}.|The independence of {s} came in {o}.",
        "When did {s} become independent?|In what year did {s} gain independence?",
        "What became independent in {o}?",
    ),
    _relation(
        "thing",
        "money",
        "The {s} costs {o}.|The price of the {s} is {o}.|You pay {o} for the {s}.",
        "How much does the {s} cost?|What is the price of the {s}?|how much is the {s}",
        "What costs {o}?",
    ),
    _relation(
        "thing",
        "word",
        "The {s} is made of {o}.|{o} is used to make the {s}.|The {s} consists of {o}.",
        "What is the {s} made of?|What is used to make the {s}?|What does the {s} consist of?",
        "What is made of {o}?",
    ),
    _relation(
        "thing",
        "date",
        "The {s} opened on {o}.|On {o} the {s} was opened.|The opening of the {s} was on {o}.",
        "When did the {s} open?|On what date was the {s} opened?",
        "What opened on {o}?",
    ),
    _relation(
        "thing",
        "number",
        "The {s} weighs {o} kilograms.|The weight of the {s} is {o} kilograms.",
        "How much does the {s} weigh?|What is the weight of the {s} in kilograms?",
        "What weighs {o} kilograms?",
    ),
    _relation(
        "thing",
        "place",
        "The {s} is kept in {o}.|The {s} can be found in {o}.|{o} holds the {s}.",
        "Where is the {s} kept?|Where can the {s} be found?|where is the {s}",
        "What is kept in {o}?",
    ),
    _relation(
        "term",
        "word",
        "{s} is a kind of {o}.|{s} is also called {o}.|Another name for {s} is {o}.",
        "What is {s}?|What is another name for {s}?|What is {s} also called?",
        "What is also called {o}?",
    ),
    _relation(
        "term",
        "word",
        "{s} is used for {o}.|The purpose of {s} is {o}.|People use {s} for {o}.",
        "What is {s} used for?|What is the purpose of {s}?|why do people use {s}",
        "What is used for {o}?",
    ),
    _relation(
        "term",
        "word",
        "{s} causes {o}.|{o} is caused by {s}.|The result of {s} is {o}.",
        "What does {s} cause?|What is the result of {s}?",
        "What causes {o}?|What is {o} caused by?",
    ),
    _relation(
        "term",
        "term",
        "{s} reduces {o}.|{o} is reduced by {s}.|With {s}, there is less {o}.",
        "What does {s} reduce?",
        "What reduces {o}?|How is {o} reduced?",
    ),
    _relation(
        "term",
        "term",
        "{s} is based on {o}.|{o} is the basis of {s}.|{s} builds on {o}.",
        "What is {s} based on?|What does {s} build on?",
        "What is based on {o}?|What builds on {o}?",
    ),
    _relation(
        "term",
        "person",
        "{s} was proposed by {o}.|{o} proposed {s}.|The idea of {s} came from {o}.",
        "Who proposed {s}?|Whose idea was {s}?|who came up with {s}",
        "What did {o} propose?",
    ),
    _relation(
        "term",
        "number",
        "{s} uses {o} layers.|There are {o} layers in {s}.|{s} has {o} layers.",
        "How many layers does {s} use?|How many layers are there in {s}?",
        "What has {o} layers?",
    ),
    _relation(
        "thing",
        "person",
        "The {s} was built by {o}.|{o} built the {s}.|The builder of the {s} was {o}.",
        "Who built the {s}?|By whom was the {s} built?|who was the builder of the {s}",
        "What did {o} build?",
    ),
    _relation(
        "person",
        "thing",
        "{s} won the {o}.|The {o} was won by {s}.|The {o} went to {s}.",
        "What did {s} win?|Which prize did {s} win?",
        "Who won the {o}?|who was the winner of the {o}",
    ),
    _relation(
        "group",
        "group",
        "{s} defeated {o}.|{o} lost to {s}.|{o} was defeated by {s}.",
        "Who did {s} defeat?|Who lost to {s}?",
        "Who defeated {o}?|Who did {o} lose to?",
    ),
    _relation(
        "group",
        "word",
        "{s} makes {o}.|The business of {s} is {o}.|{o} is produced by {s}.",
        "What does {s} make?|What is the business of {s}?",
        "Who makes {o}?|Which company produces {o}?",
    ),
)
"""All relations; a passage of synthetic facts draws from them at random."""
