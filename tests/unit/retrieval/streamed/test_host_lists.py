"""Lists hold every row once; a folder is whole or refused."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from fakes_streamed import clustered

from retrieval.streamed import HostLists, assign, train_centroids
from retrieval.streamed.host_lists import InvalidLists


def test_every_row_is_in_its_nearest_list_once():
    matrix_ND = clustered(1_500, 24, seed=1)
    lists = HostLists.build(matrix_ND, 20)
    assert sorted(lists.ids_N.tolist()) == list(range(1_500))
    np.testing.assert_array_equal(lists.vectors_ND, matrix_ND[lists.ids_N])
    nearest_N = (matrix_ND @ lists.centroids_CD.T).argmax(axis=1)
    for number, (start, end) in enumerate(zip(lists.offsets_C1[:-1], lists.offsets_C1[1:], strict=True)):
        assert (np.diff(lists.ids_N[start:end]) > 0).all()
        assert (nearest_N[lists.ids_N[start:end]] == number).mean() > 0.99 if end > start else True


def test_centroids_are_unit_vectors_even_where_lists_are_empty():
    same_ND = np.tile(clustered(1, 8, seed=2), (30, 1))
    centroids_CD = train_centroids(same_ND, 10)
    np.testing.assert_allclose(np.linalg.norm(centroids_CD, axis=1), 1, atol=1e-5)
    assert len(set(assign(same_ND, centroids_CD).tolist())) == 1
    with pytest.raises(ValueError, match="num_lists must be from 1 to the 30 rows"):
        train_centroids(same_ND, 31)


def test_a_folder_comes_back_as_it_was_built(tmp_path):
    matrix_ND = clustered(700, 16, seed=3)
    built = HostLists.build(matrix_ND, 9, folder=tmp_path / "lists", dtype="float16")
    again = HostLists.open(tmp_path / "lists")
    for lists in (built, again):
        assert isinstance(lists.vectors_ND, np.memmap)
        np.testing.assert_array_equal(lists.vectors_ND, matrix_ND.astype(np.float16)[lists.ids_N])
    assert [path.name for path in tmp_path.iterdir()] == ["lists"]
    with pytest.raises(FileExistsError, match="exists"):
        HostLists.build(matrix_ND, 9, folder=tmp_path / "lists")


def test_a_torn_or_foreign_folder_is_refused(tmp_path):
    folder = tmp_path / "lists"
    with pytest.raises(InvalidLists, match="holds no lists"):
        HostLists.open(folder)
    HostLists.build(clustered(300, 8, seed=4), 4, folder=folder)
    whole = (folder / "vectors.bin").read_bytes()
    (folder / "vectors.bin").write_bytes(whole[:-8])
    with pytest.raises(InvalidLists, match=r"vectors\.bin has 9592 bytes, 9600 were written"):
        HostLists.open(folder)
    (folder / "vectors.bin").write_bytes(whole)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(InvalidLists, match="'other'"):
        HostLists.open(folder)


def test_public_names_are_true():
    package = importlib.import_module("retrieval.streamed")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError):
        _ = package.no_such_name
