"""Mined negatives keep every stated rule, and are those of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from training.data import RankedPassage, RetrieverRanker, read_set
from training.errors import CheckpointError, ConfigError, DataError, DataMissingError, NumericsError
from training.negatives import MinedNegatives, MiningConfig, NegativeMiner
from training.types import TrainingPassage, TrainingQuestion, TrainingSet


class ExactSearch:
    """Inner products over all rows, -1 where `k` is more than there are."""

    def __init__(self, passages_PD: np.ndarray, *, pads: bool = False) -> None:
        self.passages_PD = passages_PD
        self.pads = pads

    def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores_QP = queries_QD @ self.passages_PD.T
        rows_QK = np.argsort(-scores_QP, axis=1, kind="stable")[:, :k]
        scores_QK = np.take_along_axis(scores_QP, rows_QK, axis=1)
        if self.pads:
            rows_QK = np.pad(rows_QK, ((0, 0), (0, 3)), constant_values=-1)
            scores_QK = np.pad(scores_QK, ((0, 0), (0, 3)), constant_values=np.nan)
        return rows_QK, scores_QK


def line_set(num_passages: int = 20, **fields) -> tuple[TrainingSet, np.ndarray, ExactSearch]:
    """One question whose positive is row 0; passage n scores 1 - n / 20."""
    passages = tuple(TrainingPassage(f"p{n}", f"text {n}") for n in range(num_passages))
    fields = {"positive_ids": ("p0",), **fields}
    questions = (TrainingQuestion("q", "which?", **fields),)
    passages_PD = (1 - np.arange(num_passages, dtype=np.float32) / 20)[:, None]
    return TrainingSet("line", passages, questions), np.ones((1, 1), np.float32), ExactSearch(passages_PD)


def config(**fields) -> MiningConfig:
    return MiningConfig(
        **{"first_rank": 0, "last_rank": 10, "relative_margin": None, "num_negatives": 3, "fills": False}
        | fields
    )


def mined(built, mining: MiningConfig) -> MinedNegatives:
    training_set, queries_QD, searches = built
    return NegativeMiner(training_set, mining).mine(queries_QD, searches)


def test_window_counts_ranks_behind_the_positive():
    assert mined(line_set(), config()).negatives == {"q": ("p1", "p2", "p3")}
    assert mined(line_set(), config(first_rank=4)).negatives == {"q": ("p5", "p6", "p7")}


def test_candidates_within_the_margin_of_the_positive_are_dropped():
    found = mined(line_set(), config(relative_margin=0.19))
    assert found.negatives == {"q": ("p4", "p5", "p6")}
    assert (found.report.num_over_margin, found.report.num_positives, found.report.num_mined) == (3, 1, 3)


def test_margin_is_that_of_the_lowest_positive():
    built = line_set(positive_ids=("p0", "p5"))
    assert mined(built, config(relative_margin=0.0)).negatives == {"q": ("p6", "p7", "p8")}


def test_margin_lowers_the_threshold_of_a_negative_score():
    training_set, queries_QD, searches = line_set()
    below = ExactSearch(searches.passages_PD - 2)
    found = NegativeMiner(training_set, config(relative_margin=0.19)).mine(queries_QD, below)
    assert found.negatives == {"q": ("p4", "p5", "p6")}


def test_nothing_passes_the_margin_of_a_positive_that_is_not_found():
    built = line_set(positive_ids=("p19",))
    found = mined(built, config(relative_margin=0.05))
    assert found.negatives == {"q": ()}
    assert (found.report.num_positives_not_found, found.report.num_short) == (1, 1)
    assert mined(built, config()).negatives == {"q": ("p0", "p1", "p2")}


def test_passages_that_hold_an_answer_are_dropped():
    found = mined(line_set(answers=("2", "The text 1!")), config())
    assert found.negatives == {"q": ("p3", "p4", "p5")}
    assert found.report.num_holding_answer == 2
    assert mined(line_set(answers=("text", "no")), config()).negatives == {"q": ()}
    assert mined(line_set(answers=("no",)), config()).negatives == {"q": ("p1", "p2", "p3")}


def test_a_copy_of_a_positive_is_never_a_negative():
    training_set, queries_QD, searches = line_set()
    passages = list(training_set.passages)
    passages[2] = TrainingPassage("copy", "The TEXT, 0.")
    copied = replace(training_set, passages=tuple(passages))
    found = NegativeMiner(copied, config()).mine(queries_QD, searches)
    assert found.negatives == {"q": ("p1", "p3", "p4")}
    assert found.report.num_positives == 2


def test_shortage_is_filled_at_random_outside_what_was_searched():
    built = line_set(positive_ids=("p19",), answers=("15",))
    found = mined(built, config(relative_margin=0.05, fills=True, num_negatives=7))
    assert sorted(found.negatives["q"]) == [f"p{n}" for n in range(11, 19) if n != 15]
    assert (found.report.num_random, found.report.num_short, found.report.num_mined) == (7, 0, 0)
    short = mined(built, config(relative_margin=0.05, fills=True, num_negatives=8))
    assert (short.report.num_random, short.report.num_short) == (7, 1)


def test_random_choice_stays_in_the_window_and_follows_from_the_seed():
    draws = [mined(line_set(), config(first_rank=2, choice="random", seed=seed)) for seed in range(6)]
    for found in draws:
        assert set(found.negatives["q"]) <= {f"p{n}" for n in range(3, 11)}
        assert list(found.negatives["q"]) == sorted(found.negatives["q"], key=lambda one: int(one[1:]))
    assert len({found.content_id for found in draws}) > 1
    assert mined(line_set(), config(first_rank=2, choice="random")).content_id == draws[0].content_id


def test_ties_go_to_the_lower_row_whatever_the_search_says():
    class Backwards(ExactSearch):
        def search(self, queries_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            rows_QK, scores_QK = super().search(queries_QD, k)
            return rows_QK[:, ::-1], scores_QK[:, ::-1]

    training_set, queries_QD, searches = line_set(num_passages=8)
    flat_PD = np.ones_like(searches.passages_PD)
    one, other = (
        NegativeMiner(training_set, config()).mine(queries_QD, kind(flat_PD))
        for kind in (ExactSearch, Backwards)
    )
    assert one.negatives == other.negatives == {"q": ("p1", "p2", "p3")}


def random_set(num_questions: int, num_passages: int, num_positives: int = 1, noise: float = 0.15):
    rng = np.random.default_rng(3)
    passages_PD = rng.normal(size=(num_passages, 16)).astype(np.float32)
    passages_PD /= np.linalg.norm(passages_PD, axis=1, keepdims=True)
    positive_rows = [
        rng.choice(num_passages, size=num_positives, replace=False).tolist() for _ in range(num_questions)
    ]
    noise_QD = rng.normal(size=(num_questions, 16)).astype(np.float32) * noise
    queries_QD = np.stack([passages_PD[rows].mean(axis=0) for rows in positive_rows]) + noise_QD
    queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
    training_set = TrainingSet(
        "random",
        tuple(TrainingPassage(f"p{n}", f"passage number {n}") for n in range(num_passages)),
        tuple(
            TrainingQuestion(f"q{n}", f"question {n}", positive_ids=tuple(f"p{row}" for row in rows))
            for n, rows in enumerate(positive_rows)
        ),
    )
    return training_set, queries_QD, ExactSearch(passages_PD)


class FixedVectors:
    """What `mine_hard_negatives` asks of a model, over vectors that are given."""

    device = "cpu"

    def __init__(self, training_set: TrainingSet, queries_QD: np.ndarray, passages_PD: np.ndarray) -> None:
        self.queries = {one.text: queries_QD[n] for n, one in enumerate(training_set.questions)}
        self.passages = {one.text: passages_PD[n] for n, one in enumerate(training_set.passages)}

    def encode_query(self, texts: Sequence[str], **options) -> np.ndarray:
        return np.stack([self.queries[text] for text in texts])

    def encode_document(self, texts: Sequence[str], **options) -> np.ndarray:
        return np.stack([self.passages[text] for text in texts])

    def similarity(self, one, other):
        from sentence_transformers.util import cos_sim

        return cos_sim(one, other)

    def similarity_pairwise(self, one, other):
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(one, other)


@pytest.mark.parametrize(
    ("num_positives", "noise", "first_rank", "last_rank", "margin", "num_negatives"),
    [
        (1, 0.15, 0, 5, None, 5),
        (1, 0.15, 10, 100, 0.05, 7),
        (1, 0.15, 3, 30, 0.4, 4),
        (2, 0.15, 10, 100, 0.05, 7),
        (3, 0.15, 2, 12, 0.2, 3),
        (1, 0.15, 0, 400, 0.9, 40),
        # So much noise that many positives are below the ranks searched, or have negative scores.
        (1, 1.0, 2, 20, 0.1, 5),
        (2, 1.0, 0, 250, 0.1, 9),
    ],
)
def test_negatives_are_those_of_sentence_transformers(
    num_positives, noise, first_rank, last_rank, margin, num_negatives
):
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    training_set, queries_QD, searches = random_set(120, 300, num_positives, noise)
    texts = {one.passage_id: one.text for one in training_set.passages}
    pairs = [
        (one.text, texts[passage_id]) for one in training_set.questions for passage_id in one.positive_ids
    ]
    theirs = mine_hard_negatives(
        Dataset.from_dict({"query": [pair[0] for pair in pairs], "positive": [pair[1] for pair in pairs]}),
        FixedVectors(training_set, queries_QD, searches.passages_PD),  # type: ignore[arg-type]
        corpus=list(texts.values()),
        range_min=first_rank,
        range_max=last_rank,
        relative_margin=margin,
        num_negatives=num_negatives,
        output_format="labeled-pair",
        verbose=False,
    )
    expected: dict[str, list[str]] = {one.text: [] for one in training_set.questions}
    for row in theirs:
        if row["label"] == 0:
            expected[row["query"]].append(row["positive"])
    mining = config(
        first_rank=first_rank, last_rank=last_rank, relative_margin=margin, num_negatives=num_negatives
    )
    ours = NegativeMiner(training_set, mining).mine(queries_QD, searches, batch_size=50)
    for question in training_set.questions:
        assert [texts[one] for one in ours.negatives[question.question_id]] == expected[question.text]
    assert ours.report.num_mined == sum(len(one) for one in expected.values()) > 0


def test_batches_and_padding_do_not_change_the_result():
    training_set, queries_QD, searches = random_set(50, 90)
    miner = NegativeMiner(training_set, MiningConfig())
    whole = miner.mine(queries_QD, searches)
    padded = miner.mine(queries_QD, ExactSearch(searches.passages_PD, pads=True), batch_size=7)
    assert padded.content_id == whole.content_id
    assert padded.report.num_candidates == whole.report.num_candidates


class NamedRanker:
    def __init__(self, found: list[RankedPassage]) -> None:
        self.found = found

    async def rank(self, queries: Sequence[str], k: int) -> list[list[RankedPassage]]:
        return [self.found[:k] for _ in queries]


async def test_live_mining_keeps_the_same_rules_and_ignores_what_is_outside():
    training_set, *_ = line_set(answers=("2",))
    found = [RankedPassage(None, 2.0), *(RankedPassage(f"p{n}", 1 - n / 20) for n in range(10))]
    live = await NegativeMiner(training_set, config(relative_margin=0.06)).mine_live(NamedRanker(found))
    assert live.negatives == {"q": ("p3", "p4", "p5")}
    assert (live.report.num_outside, live.report.num_over_margin) == (1, 1)
    with pytest.raises(NumericsError, match="NaN"):
        await NegativeMiner(training_set, config()).mine_live(NamedRanker([RankedPassage("p1", np.nan)]))


async def test_live_retriever_is_mined_by_words():
    from fakes_agents import MemoryRetriever, passage

    texts = ["red apple pie", "red apple tart", "red plum tart", "blue sky"]
    passages = tuple(TrainingPassage(f"a.md#{n}", text) for n, text in enumerate(texts))
    question = TrainingQuestion("q", "red apple pie", positive_ids=("a.md#0",))
    retriever = MemoryRetriever([passage(text, document="a.md", ordinal=n) for n, text in enumerate(texts)])
    ranker = RetrieverRanker(retriever, {one.passage_id for one in passages})
    miner = NegativeMiner(
        TrainingSet("s", passages, (question,)), config(num_negatives=2, relative_margin=0.05)
    )
    assert (await miner.mine_live(ranker)).negatives == {"q": ("a.md#1", "a.md#2")}


def test_questions_without_a_positive_are_counted_and_not_mined():
    training_set, _, searches = line_set()
    more = (*training_set.questions, TrainingQuestion("u", "else?", is_unanswerable=True))
    found = NegativeMiner(replace(training_set, questions=more), config()).mine(
        np.ones((2, 1), np.float32), searches
    )
    assert list(found.negatives) == ["q"]
    assert found.report.num_without_positive == 1
    with pytest.raises(DataError, match="no question has a positive"):
        NegativeMiner(replace(training_set, questions=more[1:]), config())


def test_an_index_of_another_set_is_refused():
    training_set, queries_QD, searches = line_set()
    miner = NegativeMiner(training_set, config())
    with pytest.raises(DataError, match="2 query vectors for 1 questions"):
        miner.mine(np.ones((2, 1), np.float32), searches)
    with pytest.raises(DataError, match="row 39, the set has 20 passages"):
        miner.mine(queries_QD, ExactSearch(np.arange(40, dtype=np.float32)[:, None]))
    with pytest.raises(NumericsError, match="NaN"):
        miner.mine(queries_QD * np.nan, searches)


@pytest.mark.parametrize(
    "fields",
    [
        {"first_rank": 10},
        {"first_rank": -1},
        {"num_negatives": 11},
        {"num_negatives": 0},
        {"relative_margin": 1.0},
        {"relative_margin": -0.1},
    ],
)
def test_config_out_of_its_range_is_refused(fields):
    with pytest.raises(ConfigError):
        config(**fields)


def test_mined_negatives_come_behind_judged_ones():
    built = line_set(negative_ids=("p2", "p9"))
    found = mined(built, config())
    (question,) = found.applied_to(built[0]).questions
    assert question.negative_ids == ("p2", "p9", "p1", "p3")
    with pytest.raises(DataError, match="mined for another set"):
        found.applied_to(line_set()[0])


def test_content_id_names_the_set_and_the_negatives_in_order():
    found = mined(line_set(), config())
    assert mined(line_set(), config(last_rank=9)).content_id == found.content_id
    assert mined(line_set(), config(first_rank=1)).content_id != found.content_id
    assert replace(found, negatives={"q": found.negatives["q"][::-1]}).content_id != found.content_id
    assert replace(found, set_fingerprint="other").content_id != found.content_id


def test_mined_negatives_are_saved_whole_and_checked_on_loading(tmp_path):
    found = mined(line_set(), config())
    path = tmp_path / "mined" / "negatives.json"
    found.save(path)
    assert MinedNegatives.load(path) == found
    assert [one.name for one in path.parent.iterdir()] == ["negatives.json"]
    content = json.loads(path.read_text())
    content["negatives"]["q"][0] = "p7"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="content id"):
        MinedNegatives.load(path)
    for damage in ("{", "[]", "{}", json.dumps({**content, "negatives": 3})):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match="damaged"):
            MinedNegatives.load(path)
    with pytest.raises(DataMissingError):
        MinedNegatives.load(tmp_path / "none.json")


def test_real_questions_get_negatives_that_do_not_answer_them(data_folder):
    """Vectors are hashed words: enough to rank a passage high for the words it shares with a question."""
    squad = read_set("squad", data_folder / "squad2" / "train.json.xz")

    def embed(text: str) -> np.ndarray:
        vector_D = np.zeros(512, np.float32)
        for word in text.lower().split():
            vector_D[sum(word.encode()) * 31 % 512] += 1
        return vector_D / max(1.0, float(np.linalg.norm(vector_D)))

    passages_PD = np.stack([embed(one.full_text) for one in squad.passages])
    queries_QD = np.stack([embed(one.text) for one in squad.questions])
    mining = MiningConfig(relative_margin=None, num_negatives=4)
    found = NegativeMiner(squad, mining).mine(queries_QD, ExactSearch(passages_PD))
    texts = {one.passage_id: one.text for one in squad.passages}
    assert found.report.num_holding_answer > 0
    assert found.report.num_short == 0
    for question in squad.questions:
        for passage_id in found.negatives.get(question.question_id, ()):
            assert passage_id not in question.positive_ids
            assert not any(f" {answer} " in texts[passage_id] for answer in question.answers)
