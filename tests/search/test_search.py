"""The index of a folder, and its images found, explained and exported; a tiny network, images of noise."""

import os
import sqlite3
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from samples import config_in, make_files, noise
from toy import trained_network

from utils.explain import occlusion
from utils.explain.occlusion import WINDOWS
from utils.Grad_CAM import explain
from utils.images.reading import read_image
from utils.search import build as building
from utils.search import query as querying
from utils.search import store
from utils.search.build import build_index
from utils.search.query import export_parquet, find_index, search, show_hits
from utils.search.store import Index
from utils.system.errors import DataError, SearchError, UserError

SIZE = (16, 24)
PASSES = sum(windows.per_side**2 for windows in WINDOWS) + 2  # each region occluded; the whole image, twice
FILES = [f"{i // 3}/{i}.png" for i in range(7)]


@pytest.fixture(autouse=True)
def whole_images(monkeypatch):
    """So that passes can be counted."""
    monkeypatch.setattr(occlusion, "local_stages", lambda model: [])


@pytest.fixture
def model():
    return trained_network(size=SIZE)


@pytest.fixture
def folder(tmp_path):
    make_files(tmp_path / "photos", [*FILES, "README.txt", ".hidden/x.png"])
    noise(seed=50).save(tmp_path / "query.png")
    return tmp_path / "photos"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.sqlite"


def build(model, folder, path, **options):
    return build_index(model, folder, path, num_workers=0, verbose=False, **options)


def told(folder, images, embedded=0, gone=0):
    return f"{folder}: {images} images in the index; new or changed: {embedded}, gone: {gone}"


def find(model, path, query, count=10):
    with Index(path, model) as index:
        return search(model, index, query, count)


def count_passes(model):
    passes = []
    model.backbone[0].register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    return passes


def files_in(model, path):
    with Index(path, model) as index:
        return sorted(index.contents()[0])


def test_hits_are_those_of_a_loop_nearest_first(model, folder, path):
    build(model, folder, path)
    found, query = {}, model.preprocess(read_image(folder.parent / "query.png"))[None]
    with torch.no_grad():
        for file in FILES:
            z = model.embed(torch.cat([query, model.preprocess(read_image(folder / file))[None]]))
            found[file] = float((z[0] - z[1]).norm())
    result = find(model, path, folder.parent / "query.png", 4)
    assert result.table().file.tolist() == sorted(found, key=found.get)[:4]
    for hit in result.hits:
        distance = found[hit.file] / model.margin
        assert hit.similarity == pytest.approx(1 - min(distance, 1), abs=1e-5)
        assert hit.decision == ("similar" if distance < model.threshold else "dissimilar")
    own = find(model, path, folder / "0" / "0.png")
    assert len(own.hits) == 6 and "0/0.png" not in own.table().file.tolist()


def test_nearest_of_many_even_far_from_the_origin(model, path, tmp_path):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(3000, 5)) + 30).astype(np.float32)
    with Index(path, model, tmp_path) as index:
        states = [(f"{i}.png", "1") for i in range(3000)]
        index.add(states[:2000], z[:2000])
        index.nearest(z[0], 1)
        index.add(states[2000:], z[2000:])
        for query in rng.normal(size=(20, 5)) + 30:
            expected = np.argsort(np.sqrt(((z.astype(float) - query) ** 2).sum(1)))[:10]
            found = index.nearest(query, 10)
            assert [entry.file for _, entry in found] == [f"{i}.png" for i in expected]
            assert found[0][0] == pytest.approx(np.sqrt(((z[expected[0]].astype(float) - query) ** 2).sum()))


def test_a_hit_is_explained_from_the_index_alone_as_explain_does(model, folder, path, monkeypatch):
    assert build(model, folder, path, explain=True) == told(folder, 7, 7)
    one = model.preprocess(read_image(folder.parent / "query.png"))[None]
    expected = {file: explain(model, one, model.preprocess(read_image(folder / file))[None]) for file in FILES[::3]}
    passes = count_passes(model)
    found = find(model, path, folder.parent / "query.png")
    assert sum(passes) == PASSES and len(found.hits) == 7  # the network does not see a hit again
    for hit in found.hits:
        assert hit.matches
        if hit.file in expected:
            raw, found_raw = expected[hit.file].raw, hit.pair["explanation"].raw
            assert (found_raw - raw).abs().max() < 5e-3 * raw.abs().max()
            assert hit.pair["explanation"].is_similar == expected[hit.file].is_similar
    axes = show_hits(found).axes
    assert [axis.get_xlabel() for axis in axes[1::6]] == [hit.file.replace("/", "\n") for hit in found.hits]
    assert all(axis.images for axis in axes) and len(axes) == 7 * 6
    monkeypatch.setattr(querying, "MOST_ROWS", 2)
    assert len(show_hits(found).axes) == 2 * 6


def test_what_a_query_measures_is_kept(model, folder, path):
    left = "\n7 images not measured yet; a query measures those that it finds"
    assert build(model, folder, path) == told(folder, 7, 7) + left
    passes = count_passes(model)
    for expected in (PASSES * 4, PASSES):  # the query and three hits; the query
        found = find(model, path, folder / "0" / "0.png", 3)
        assert sum(passes) == expected and all(hit.pair for hit in found.hits)
        passes.clear()


def other_picture(path, seed):
    """Put another picture in its place, of the same size in bytes and the same time of change."""
    before, new = path.stat(), path.with_suffix(".new")
    noise(seed=seed).resize((8, 6)).save(new, "PNG")
    new.write_bytes(new.read_bytes().ljust(before.st_size, b"\0"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_groups_that_query_and_hits_share_are_named(model, folder, path, monkeypatch):
    class Groups:
        """Group 7 is in the query and three hits, group 8 in all hits, group 9 in the query; 5 has too few images."""

        def find(self, features, size):
            rows = [(0, 7), (1, 7), (2, 7), (2, 7), (4, 7), (0, 9), (0, 5), (1, 5), *((k, 8) for k in range(1, 6))]
            assert len(next(iter(features))) == 6 and size == SIZE
            return pd.DataFrame(rows, columns=["image", "group"])

    table = pd.DataFrame({"images": [40, 90, 10], "suspect": [True, False, False]}, index=[1, 2, 3])
    known = SimpleNamespace(groups=Groups(), numbers={7: 1, 8: 2, 9: 3}, table=table, chosen=range(100))
    monkeypatch.setattr(querying.Reliance, "load", lambda place, network: known if place.is_file() else None)
    build(model, folder, path)
    assert find(model, path, folder.parent / "query.png", 5).shared == []
    path.with_name("evidence.pth").touch()
    told = "group 1 of evidence, a suspect: in the query, in 3 of 5 hits, in 40% of the test images"
    assert find(model, path, folder.parent / "query.png", 5).shared == [told]


@pytest.mark.parametrize("explained", [False, True])
def test_a_hit_that_has_gone_or_changed_is_named_and_not_explained(model, folder, path, explained):
    build(model, folder, path, explain=explained)
    (folder / "0" / "1.png").unlink()
    other_picture(folder / "0" / "2.png", seed=60)
    found = find(model, path, folder / "0" / "0.png")
    assert {hit.file for hit in found.hits if hit.pair is None} == {"0/1.png", "0/2.png"}
    axes = show_hits(found).axes
    grey = [bool(np.ptp(axes[6 * k + 1].images[0].get_array()) == 0) for k in range(6)]
    assert grey == [hit.pair is None for hit in found.hits]
    assert "new or changed: 1, gone: 1" in build(model, folder, path)


def test_images_that_cannot_be_looked_for_stay_in_the_index_with_a_line(model, folder, path, monkeypatch):
    build(model, folder, path, explain=True)
    walk, (place, away) = os.walk, (folder / "0", folder.parent / "away")

    def refused(top, onerror):
        for folder_, folders, files in walk(top):
            if Path(folder_) == place:
                onerror(PermissionError(13, "denied", folder_))
            else:
                yield folder_, folders, files

    stay = "0: empty, or cannot be listed; the index keeps 3 images of it; connect its drive, or delete it"
    with monkeypatch.context() as patch:
        patch.setattr(os, "walk", refused)
        wrong = "left out:\n0: a folder that cannot be listed; change its access rights"
        assert build(model, folder, path) == f"{wrong}\n{stay}\n{told(folder, 7)}"
    place.rename(away)
    place.mkdir()  # a drive that is not mounted
    assert build(model, folder, path) == f"{stay}\n{told(folder, 7)}" and len(files_in(model, path)) == 7
    place.rmdir()
    assert build(model, folder, path) == f"0: gone, with 3 images\n{told(folder, 4, gone=3)}"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_link_to_a_file_that_is_not_there_now_stays(model, folder, path):
    away = folder.parent / "away.png"
    noise(seed=9).save(away)
    (folder / "0" / "link.png").symlink_to(away)
    build(model, folder, path, explain=True)
    away.unlink()
    wrong = "left out:\n0/link.png: a link to nowhere; delete it, or bring back the file that it leads to"
    assert build(model, folder, path) == f"{wrong}\n{told(folder, 8)}"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_to_the_query_take_no_places(model, folder, path):
    query = folder / "0" / "0.png"
    for number in range(9):
        (folder / f"{number}.png").symlink_to(query)
        os.link(query, folder / f"hard {number}.png")
    build(model, folder, path)
    for count in (1, 5, 9):
        files = find(model, path, query, count).table().file.tolist()
        assert len(files) == min(count, 6) and set(files) <= set(FILES[1:])


def test_a_folder_that_was_moved_is_a_line(model, folder, path):
    build(model, folder, path)
    folder.rename(folder.parent / "moved")
    with pytest.raises(SearchError, match="photos: the indexed folder is not there now; bring it back, or run"):
        find(model, path, folder.parent / "query.png")


def test_only_new_and_changed_files_are_embedded_and_deleted_ones_go(model, folder, path):
    passes = count_passes(model)
    build(model, folder, path, explain=True)
    assert sum(passes) == 7 * (1 + PASSES)
    passes.clear()
    build(model, folder, path, explain=True)
    assert sum(passes) == 0
    make_files(folder, ["new/8.png"])
    noise(seed=77).resize((30, 30)).save(folder / "0" / "0.png")
    (folder / "1" / "5.png").unlink()
    assert build(model, folder, path, explain=True) == told(folder, 7, 2, gone=1)
    assert sum(passes) == 2 * (1 + PASSES)
    assert files_in(model, path) == [*FILES[:5], FILES[6], "new/8.png"]


def test_unreadable_files_are_named_and_left_out(model, folder, path):
    (folder / "0" / "1.png").write_text("no image")
    wrong = "left out:\n0/1.png: not a readable image (its content is not an image's); delete or replace it"
    assert build(model, folder, path, explain=True) == f"{wrong}\n{told(folder, 6, 6)}"
    noise().save(folder / "0" / "1.png")
    assert build(model, folder, path, explain=True) == told(folder, 7, 1)


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names of any bytes are Linux's")
def test_what_cannot_be_named_is_left_out_with_a_reason(model, folder, path):
    noise().save(os.fsencode(folder) + b"/caf\xe9.png")
    wrong = "left out:\ncaf?.png: a name that is not valid text; rename it"
    assert build(model, folder, path, explain=True) == f"{wrong}\n{told(folder, 7, 7)}"
    folder = folder.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9"))
    with pytest.raises(DataError, match="a path that is not valid text; rename the folder"):
        build(model, folder, path)


@pytest.mark.parametrize("listed", [(building, "images_in"), (Index, "add")])
def test_a_file_that_changes_while_the_index_is_built_is_seen_as_changed(model, folder, path, monkeypatch, listed):
    def and_then_one_changes(*arguments):
        found = function(*arguments)
        if not folder.with_name("changed").exists():
            folder.with_name("changed").touch()
            other_picture(folder / "0" / "0.png", seed=60)
        return found

    function = getattr(*listed)
    monkeypatch.setattr(*listed, and_then_one_changes)
    build(model, folder, path, explain=True)
    found = find(model, path, folder / "2" / "6.png")
    assert {hit.file for hit in found.hits if hit.pair is None} == {"0/0.png"}
    assert build(model, folder, path, explain=True) == told(folder, 7, 1)


def test_a_build_that_is_stopped_goes_on_from_its_last_batch(model, folder, path, monkeypatch):
    written = []

    class Dying(sqlite3.Connection):
        def executemany(self, statement, rows):
            super().executemany(statement, rows)
            written.append(statement)
            if sum("INTO images" in one for one in written) == 3:
                raise KeyboardInterrupt  # with the third batch of two written, but not committed

    with monkeypatch.context() as patch:
        patch.setattr(building, "EMBEDDED_AT_ONCE", 2)
        patch.setattr(store.sqlite3, "connect", partial(sqlite3.connect, factory=Dying))
        with pytest.raises(KeyboardInterrupt):
            build(model, folder, path)
    assert len(files_in(model, path)) == 4
    passes = count_passes(model)
    assert build(model, folder, path).startswith(told(folder, 7, 3)) and sum(passes) == 3


def test_readers_see_whole_batches_while_it_is_written(model, path, tmp_path):
    z = np.ones((1, 5), dtype=np.float32)
    with Index(path, model, tmp_path) as writer, Index(path, model) as reader:
        for number in range(3):
            writer.add([(f"{number}.png", "1")], z)
            assert len(reader.nearest(z[0], 9)) == number + 1
            writer.db.execute("DELETE FROM images")  # not committed
            assert len(reader.nearest(z[0], 9)) == number + 1
            writer.db.execute("ROLLBACK")


def test_an_index_of_another_network_is_named_and_built_from_the_start(model, folder, path):
    build(model, folder, path)
    model.threshold = 0.4  # decides another way, on the same embeddings
    assert len(files_in(model, path)) == 7
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(SearchError, match="of another network.* run .* build .*photos again$"):
        Index(path, model)
    start = "the index was of another network or version: built from the start"
    assert build(model, folder, path, explain=True) == f"{start}\n{told(folder, 7, 7)}"


def test_an_index_of_another_version_is_built_from_the_start(model, folder, path):
    build(model, folder, path)
    with Index(path, model) as index, index.db:  # as an earlier one left it
        index.db.executescript("DROP TABLE effects; DROP TABLE images; CREATE TABLE images (changed INTEGER)")
        index.db.execute("UPDATE about SET value = 'x' WHERE key = 'network'")
    assert "built from the start" in build(model, folder, path) and files_in(model, path) == FILES


@pytest.mark.parametrize("damage", [b"no database", None])
def test_a_damaged_index_is_a_line_that_says_what_to_do(model, folder, path, damage):
    build(model, folder, path, explain=True)
    path.write_bytes(damage or path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SearchError, match="index.sqlite: cannot be used .* delete it and build again") as caught:
        files_in(model, path)
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_opened_is_a_line(model, folder, path):
    path.mkdir()
    for place in (path, folder / "0" / "0.png" / "index.sqlite"):
        with pytest.raises(SearchError, match="index.sqlite: cannot be used .* access rights"):
            build(model, folder, place)


def test_an_index_that_was_never_built_is_named(tmp_path):
    with pytest.raises(SearchError, match="search: not indexed; run .* build FOLDER first"):
        find_index(config_in(tmp_path))


def test_another_database_finds_the_same_in_an_export(model, folder, path, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    from pyarrow import parquet

    make_files(folder, [f"more/{number}.png" for number in range(40)])
    build(model, folder, path)
    with Index(path, model) as index:
        assert export_parquet(index, tmp_path / "o" / "index.parquet") == 47
    table = lancedb.connect(tmp_path / "lance").create_table("t", parquet.read_table(tmp_path / "o" / "index.parquet"))
    with torch.no_grad():
        (z,) = model.embed(model.preprocess(read_image(folder.parent / "query.png"))[None])
    found = table.search(z.numpy(), vector_column_name="embedding").limit(10).to_list()
    expected = [str(folder / hit.file) for hit in find(model, path, folder.parent / "query.png").hits]
    assert len(expected) == 10 and [row["path"] for row in found] == expected


def test_export_says_what_to_install(model, folder, path, tmp_path, monkeypatch):
    build(model, folder, path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with Index(path, model) as index, pytest.raises(UserError, match="pyarrow is missing; run: pip install pyarrow$"):
        export_parquet(index, tmp_path / "index.parquet")
    assert not (tmp_path / "index.parquet").exists()
