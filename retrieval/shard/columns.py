"""The documents of one index version as typed columns, and predicates evaluated over them.

A document has a code: 0 to G-1 in the order documents came. A column keeps only the documents that have its
field, as (code, value) pairs in ascending order of code; texts are kept once and referred to by number.

Legend: G documents, E entries of a column.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from retrieval.filters import (
    BUILT_IN_FIELDS,
    And,
    Compare,
    Exists,
    FieldType,
    Filter,
    In,
    Not,
    Or,
    Scalar,
    type_of,
)
from retrieval.shard.growing import GrowingArray
from retrieval.truth.stored import HASH_PREFIX_DIGITS, DocumentInfo, DocumentRows
from retrieval.types import MetadataValue

_DTYPES: dict[FieldType, str] = {"text": "int32", "texts": "int32", "number": "float64", "boolean": "int8"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NO_WORD = -1
"""Stands for an empty list of texts: the field is there, and equals nothing."""


class Column:
    """One field of the documents that have it."""

    def __init__(
        self,
        field_type: FieldType,
        codes_E: np.ndarray | None = None,
        values_E: np.ndarray | None = None,
        packed: np.ndarray | None = None,
    ) -> None:
        """Start empty, or with entries as `codes_E`, `values_E` and `packed_words` of another hold them."""
        self.field_type: FieldType = field_type
        self._codes = GrowingArray(np.asarray([] if codes_E is None else codes_E, dtype=np.int32))
        self._values = GrowingArray(
            np.asarray([] if values_E is None else values_E, dtype=_DTYPES[field_type])
        )
        self._packed = packed
        self._words: list[str] = []
        # Words that came with `packed` have numbers of their own, found only once a filter asks for one:
        # a shard opens without making a dictionary of all it ever held.
        self._loaded: dict[str, int] | None = None if packed is not None else {}
        self._fresh: dict[str, int] = {}

    @property
    def words(self) -> list[str]:
        """Return the distinct texts, by number; one may be there twice, from before and after loading."""
        if self._packed is not None:
            self._words, self._packed = (
                json.loads(self._packed.tobytes().decode("utf-8", "surrogatepass")),
                None,
            )
        return self._words

    def packed_words(self) -> np.ndarray:
        """Return the texts as uint8 values that `__init__` takes."""
        text = json.dumps(self.words, ensure_ascii=False)
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)

    @property
    def codes_E(self) -> np.ndarray:
        """Return int32[E]: the document of each entry, ascending."""
        return self._codes.values

    @property
    def values_E(self) -> np.ndarray:
        """Return float64, int8 or, for texts, int32[E] numbers of `words`."""
        return self._values.values

    def extend(self, codes: Sequence[int], values: Sequence[MetadataValue]) -> None:
        """Add the values of documents that come after all others here, in order."""
        if self.field_type == "text":
            self._values.append(np.array([self._number_of(cast("str", value)) for value in values]))
        elif self.field_type == "texts":
            several = [list(dict.fromkeys(cast("tuple[str, ...]", value))) for value in values]
            numbers = [[self._number_of(word) for word in words] or [_NO_WORD] for words in several]
            codes = np.repeat(codes, [len(some) for some in numbers]).tolist()
            self._values.append(np.array([number for some in numbers for number in some]))
        else:
            self._values.append(np.array(values, dtype=np.float64))
        self._codes.append(np.asarray(codes))

    def keeps(self, leaf: Compare | In | Exists, start: int, count: int) -> np.ndarray:
        """Return whether each document from code `start` satisfies a comparison, bool[count]."""
        # In the dtype of the codes: bounds of another would have all of them converted.
        first, end = np.searchsorted(self.codes_E, np.array((start, start + count), dtype=np.int32))
        codes_E = self.codes_E[first:end]
        held_E = self._holds(leaf, self.values_E[first:end])
        if self.field_type != "texts" and len(codes_E) == count:
            return held_E  # Every document has the field.
        kept = np.zeros(count, dtype=bool)
        kept[codes_E[held_E] - start] = True
        return kept

    def subset(self, codes: np.ndarray) -> Column:
        """Return the column of some documents, coded anew by their place in `codes`, which ascends."""
        place_E = np.minimum(np.searchsorted(codes, self.codes_E), max(len(codes) - 1, 0))
        kept_E = codes[place_E] == self.codes_E if len(codes) else np.zeros(len(place_E), dtype=bool)
        values_E = self.values_E[kept_E]
        column = Column(self.field_type, place_E[kept_E], values_E)
        if self.field_type in ("text", "texts"):
            # Words nobody uses any more go: what was deleted must not stay in a file.
            words = self.words
            used, inverse_E = np.unique(values_E, return_inverse=True)
            numbers = [
                _NO_WORD if old == _NO_WORD else column._number_of(words[old]) for old in used.tolist()
            ]
            column.values_E[:] = np.array(numbers, dtype=np.int32)[inverse_E] if numbers else 0
        return column

    def _holds(self, leaf: Compare | In | Exists, values_E: np.ndarray) -> np.ndarray:
        """Return whether each entry satisfies a comparison, bool[E]."""
        if isinstance(leaf, Exists):
            return np.ones(len(values_E), dtype=bool)
        if isinstance(leaf, In):
            wanted = [number for value in leaf.values for number in self._stored(value)]
            return np.isin(values_E, np.array(wanted))
        if self.field_type not in ("text", "texts"):
            return _COMPARE[leaf.operator](values_E, leaf.value)
        if leaf.operator == "==":
            return _joined(
                np.logical_or, (values_E == number for number in self._stored(leaf.value) or (-2,))
            )
        compare = _COMPARE[leaf.operator]
        # One more for the empty list, which `_NO_WORD` finds at the end.
        holds = np.fromiter((compare(word, leaf.value) for word in self.words), dtype=bool)
        return np.append(holds, False)[values_E]

    def _stored(self, value: Scalar) -> list[float]:
        """Return what stands for a value among the entries: nothing, or the numbers of its text."""
        if not isinstance(value, str):
            return [value]
        if self._loaded is None:
            known = set(self._fresh.values())
            self._loaded = {word: number for number, word in enumerate(self.words) if number not in known}
        return [numbers[value] for numbers in (self._loaded, self._fresh) if value in numbers]

    def _number_of(self, word: str) -> int:
        number = self._fresh.get(word)
        if number is None:
            number = self._fresh[word] = len(self.words)
            self.words.append(word)
        return number


class Columns:
    """All documents of a version. Not thread-safe: the shard's search lock guards it."""

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Start empty, or with documents as `arrays` returned them."""
        self._columns: dict[str, Column] = {name: Column(kind) for name, kind in _OF_DOCUMENTS.items()}
        self._of_metadata: dict[str, Column] = {}
        if arrays is not None:
            self._load(arrays)

    def __len__(self) -> int:
        return len(self._columns["document_id"].codes_E)

    @property
    def fields(self) -> dict[str, FieldType]:
        """Return the type of every field a filter can name."""
        fields: dict[str, FieldType] = dict(BUILT_IN_FIELDS)
        fields.update((name, column.field_type) for name, column in self._of_metadata.items())
        return fields

    def extend(self, documents: Sequence[DocumentInfo | DocumentRows]) -> int:
        """Add documents in order and return the code of the first."""
        first = len(self)
        codes = range(first, first + len(documents))
        for name, column in self._columns.items():
            values = [getattr(document, name) for document in documents]
            if name == "content_hash":
                values = [digest[:HASH_PREFIX_DIGITS] for digest in values]
            column.extend(codes, values)
        found: dict[str, tuple[list[int], list[MetadataValue]]] = {}
        for code, document in zip(codes, documents, strict=True):
            for field, value in document.metadata.items():
                entries = found.setdefault(field, ([], []))
                entries[0].append(code)
                entries[1].append(value)
        for field, (held, values) in found.items():
            column = self._of_metadata.get(field)
            if column is None:
                field_type = "texts" if isinstance(values[0], tuple) else type_of(values[0])
                column = self._of_metadata[field] = Column(field_type)
            column.extend(held, values)
        return first

    def chunk_prefixes(self, codes: np.ndarray) -> list[str]:
        """Return what the ids of documents' chunks begin with: id and content, parted by a colon."""
        named, content = self._columns["document_id"], self._columns["content_hash"]
        ids, digests = named.words, content.words
        pairs = zip(named.values_E[codes].tolist(), content.values_E[codes].tolist(), strict=True)
        return [f"{ids[name]}:{digests[digest]}" for name, digest in pairs]

    def tenants(self, codes: np.ndarray) -> list[str]:
        """Return the tenants of documents."""
        column = self._columns["tenant"]
        return [column.words[number] for number in column.values_E[codes].tolist()]

    def document_ids(self) -> list[str]:
        """Return the document of every code."""
        column = self._columns["document_id"]
        words = column.words
        return [words[number] for number in column.values_E.tolist()]

    def keeps(
        self,
        tenant: str,
        library: str | None,
        document_ids: tuple[str, ...],
        predicate: Filter | None,
        start: int = 0,
    ) -> np.ndarray:
        """Return whether a query may see each document from code `start`, bool[G - start].

        `predicate` must not name `page`, which is a chunk's.
        """
        count = len(self) - start
        kept = self._columns["tenant"].keeps(Compare("tenant", "==", tenant), start, count)
        if library is not None:
            kept = kept & self._columns["library"].keeps(Compare("library", "==", library), start, count)
        if document_ids:
            kept = kept & self._columns["document_id"].keeps(In("document_id", document_ids), start, count)
        if predicate is not None:
            kept = kept & evaluate(predicate, lambda leaf: self.leaf(leaf, start))
        return kept

    def leaf(self, leaf: Compare | In | Exists, start: int = 0) -> np.ndarray:
        """Return whether each document from code `start` satisfies a comparison, bool[G - start]."""
        count = len(self) - start
        of_documents = self._columns if leaf.field in BUILT_IN_FIELDS else self._of_metadata
        column = of_documents.get(leaf.field)
        return np.zeros(count, dtype=bool) if column is None else column.keeps(leaf, start, count)

    def arrays(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return some documents as arrays that `__init__` takes, coded anew by their place in `codes`."""
        arrays: dict[str, np.ndarray] = {}
        described: list[tuple[str, str, FieldType]] = []
        for group, columns in (("d", self._columns), ("m", self._of_metadata)):
            for name, column in columns.items():
                key = f"{group}{len(described)}"
                described.append((group, name, column.field_type))
                kept = column.subset(codes)
                arrays[f"{key}_codes"] = kept.codes_E
                arrays[f"{key}_values"] = kept.values_E
                arrays[f"{key}_words"] = kept.packed_words()
        arrays["described"] = np.frombuffer(json.dumps(described).encode(), dtype=np.uint8)
        return arrays

    def _load(self, arrays: Mapping[str, np.ndarray]) -> None:
        described = json.loads(arrays["described"].tobytes())
        for number, (group, name, field_type) in enumerate(described):
            key = f"{group}{number}"
            parts = (arrays[f"{key}_{part}"] for part in ("codes", "values", "words"))
            column = Column(field_type, *parts)
            (self._columns if group == "d" else self._of_metadata)[name] = column


def evaluate(predicate: Filter, leaf: Callable[[Compare | In | Exists], np.ndarray]) -> np.ndarray:
    """Return a predicate over many things at once, from what its comparisons are of each."""
    match predicate:
        case Not(operand):
            return ~evaluate(operand, leaf)
        case And(operands):
            return _joined(np.logical_and, (evaluate(operand, leaf) for operand in operands))
        case Or(operands):
            return _joined(np.logical_or, (evaluate(operand, leaf) for operand in operands))
        case _:
            return leaf(predicate)


def _joined(join: np.ufunc, parts: Iterable[np.ndarray]) -> np.ndarray:
    found: np.ndarray | None = None
    for part in parts:
        found = part if found is None else join(found, part)
    if found is None:
        raise ValueError("a conjunction without operands; check_shape refuses it")
    return found


_OF_DOCUMENTS: dict[str, FieldType] = {
    "document_id": "text",
    "tenant": "text",
    "library": "text",
    "name": "text",
    "media_type": "text",
    "content_hash": "text",
    "created_s": "number",
    "updated_s": "number",
}
"""Columns every document has, by the attributes of `DocumentInfo`."""
