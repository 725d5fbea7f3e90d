"""The index of a folder, and its images found and explained; a tiny network, images of noise."""

import os
import sys
from dataclasses import replace

import dying
import numpy as np
import pytest
import torch
from dying import KILLED, exit_code
from samples import make_files, noise
from toy import trained_network

from utils.explain import occlusion
from utils.explain.occlusion import WINDOWS
from utils.Grad_CAM import explain
from utils.images.reading import DataError, read_image
from utils.search import build as building
from utils.search import store
from utils.search.build import build_index
from utils.search.figure import show_hits
from utils.search.query import find_index, search
from utils.search.store import FileState, Index, SearchError
from utils.settings import Config
from utils.Siamese import SiameseNetwork

SIZE = (16, 24)
PASSES = sum(count**2 for _, count, _ in WINDOWS) + 2  # with each region occluded; the whole image, twice


@pytest.fixture(autouse=True)
def whole_images(monkeypatch):
    """So that passes can be counted."""
    monkeypatch.setattr(occlusion, "local_stages", lambda model: [])


@pytest.fixture
def model():
    return trained_network(size=SIZE)


@pytest.fixture
def folder(tmp_path):
    make_files(tmp_path / "photos", [f"{i // 3}/{i}.png" for i in range(7)] + ["README.txt", ".hidden/x.png"])
    return tmp_path / "photos"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index.sqlite"


def build(model, folder, path, **options):
    return build_index(model, folder, path, num_workers=0, verbose=False, **options)


def count_passes(model):
    passes = []
    model.backbone[0].register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    return passes


def files_in(model, path):
    with Index(path, model) as index:
        return sorted(entry.state.file for _, entry in index.nearest(np.zeros(5), 100))


def test_hits_are_those_of_a_loop_nearest_first(model, folder, path):
    build(model, folder, path, effects=False)
    query = noise(seed=50)
    query.save(folder.parent / "query.png")
    with torch.no_grad():
        z = model.embed(model.preprocess(query)[None])[0]
        found = {}
        for file in folder.glob("*/*.png"):
            if ".hidden" not in file.parts:
                distance = float((model.embed(model.preprocess(read_image(file))[None])[0] - z).norm())
                found[file.relative_to(folder).as_posix()] = distance
    expected = sorted(found, key=found.get)
    with Index(path, model) as index:
        result = search(model, index, folder.parent / "query.png", 4)
        assert [result.name(hit) for hit in result.hits] == expected[:4]
        for hit in result.hits:
            distance = found[result.name(hit)]
            assert hit.similarity == pytest.approx(1 - min(distance / model.margin, 1), abs=1e-5)
            assert hit.is_similar == (distance / model.margin < model.threshold)
        own = search(model, index, folder / "0" / "0.png", 10)
    assert len(own.hits) == 6 and "0/0.png" not in own.table().file.tolist()
    decisions = ["similar" if found[file] / model.margin < 0.5 else "dissimilar" for file in expected[:4]]
    assert result.table().decision.tolist() == decisions


def test_the_nearest_of_indexes_of_parts_together_are_those_of_one_index_of_all(model, tmp_path):
    """As docs/commands.md has it for more than one machine, each with a copy of the checkpoint."""
    model.save(tmp_path / "model.pth")
    noise(seed=50).save(tmp_path / "query.png")
    found = {}
    for place, numbers in {"all": range(12), "one": range(6), "two": range(6, 12)}.items():
        for number in numbers:
            (tmp_path / place / "x").mkdir(parents=True, exist_ok=True)
            noise(seed=number).save(tmp_path / place / "x" / f"{number}.png")
        copy = SiameseNetwork.load(tmp_path / "model.pth")
        build(copy, tmp_path / place, tmp_path / f"{place}.sqlite", effects=False)
        with Index(tmp_path / f"{place}.sqlite", copy) as index:
            result = search(copy, index, tmp_path / "query.png", 4)
        found[place] = [(hit.similarity, result.name(hit)) for hit in result.hits]
    together = sorted(found["one"] + found["two"], reverse=True)[:4]
    assert [file for _, file in together] == [file for _, file in found["all"]]
    assert [similar for similar, _ in together] == pytest.approx([similar for similar, _ in found["all"]], abs=1e-6)
    assert all(set(found[place]) & set(together) for place in ("one", "two")) and together[-1][0] > 0


def test_nearest_of_many_even_far_from_the_origin(model, path, tmp_path):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(3000, 5)) + 30).astype(np.float32)
    with Index(path, model, tmp_path) as index:
        states = [FileState(f"{i}.png", 1, 1) for i in range(3000)]
        index.add(states[:2000], [(1, 1)] * 2000, z[:2000])
        index.nearest(z[0], 1)
        index.add(states[2000:], [(1, 1)] * 1000, z[2000:])
        for query in rng.normal(size=(20, 5)) + 30:
            expected = np.argsort(np.sqrt(((z.astype(float) - query) ** 2).sum(1)))[:10]
            found = index.nearest(query, 10)
            assert [entry.state.file for _, entry in found] == [f"{i}.png" for i in expected]
            assert found[0][0] == pytest.approx(np.sqrt(((z[expected[0]].astype(float) - query) ** 2).sum()))


def test_a_hit_is_explained_from_the_index_alone_as_explain_does(model, folder, path):
    report = build(model, folder, path)
    assert (report.images, report.embedded, report.unexplained) == (7, 7, 0)
    noise(seed=50).save(folder.parent / "query.png")
    one = model.preprocess(read_image(folder.parent / "query.png"))[None]
    expected = {
        file.relative_to(folder).as_posix(): explain(model, one, model.preprocess(read_image(file))[None])
        for file in folder.glob("[0-9]/*.png")
    }
    for file in folder.glob("[0-9]/*.png"):
        file.unlink()  # neither the network nor the decoder sees a hit again
    passes = count_passes(model)
    with Index(path, model) as index:
        found = search(model, index, folder.parent / "query.png")
    assert sum(passes) == PASSES and len(found.hits) == 7
    for hit in found.hits:
        raw = expected[found.name(hit)].raw
        assert (hit.explanation.raw - raw).abs().max() < 5e-3 * raw.abs().max()
        assert hit.explanation.is_similar == expected[found.name(hit)].is_similar and hit.matches
    assert len(show_hits(found).axes) == 7 * 6


def test_maps_of_hits_are_marked_as_those_of_a_pair(model, folder, path):
    build(model, folder, path)
    with Index(path, model) as index:
        found = search(model, index, folder / "0" / "0.png", 1)
    (hit,) = found.hits
    strength = torch.tensor([[[1.0, 0.1], [1.0, 0.0]]])  # image, map
    maps = {"strength": strength, "empty": strength == 0, "counterfactual": 0 * hit.explanation.counterfactual}
    found = replace(found, hits=[replace(hit, explanation=replace(hit.explanation, **maps))])
    _, named, own, hits, weak, none = show_hits(found).axes
    assert named.get_xlabel() == found.name(hit).replace("/", "\n")
    assert (
        own.collections and hits.collections and not weak.collections and not none.collections
    )  # lines around regions
    assert [axis.texts[0].get_text() for axis in (weak, none)] == ["hardly any", "no such evidence"]


def test_what_a_query_measures_is_kept(model, folder, path):
    assert build(model, folder, path, effects=False).unexplained == 7
    passes = count_passes(model)
    for wanted in (PASSES * 4, PASSES):  # the query and three hits; the query
        with Index(path, model) as index:
            found = search(model, index, folder / "0" / "0.png", 3)
        assert sum(passes) == wanted and all(hit.explanation for hit in found.hits)
        passes.clear()


def test_a_hit_that_has_changed_is_named_and_not_explained(model, folder, path):
    build(model, folder, path, effects=False)
    (folder / "0" / "1.png").unlink()
    with Index(path, model) as index:
        found = search(model, index, folder / "0" / "0.png")
    (lost,) = [hit for hit in found.hits if hit.explanation is None]
    assert lost.problem == f"0/1.png: gone or changed; run python -m utils search build {folder}"
    assert len(show_hits(found).axes) == 6 * 6


def test_only_new_and_changed_files_are_looked_at_and_deleted_ones_go(model, folder, path):
    passes = count_passes(model)
    build(model, folder, path)
    assert sum(passes) == 7 * (1 + PASSES)
    passes.clear()
    build(model, folder, path)
    assert sum(passes) == 0
    make_files(folder, ["new/8.png"])
    noise(seed=77).resize((30, 30)).save(folder / "0" / "0.png")
    (folder / "2" / "6.png").unlink()
    report = build(model, folder, path)
    assert sum(passes) == 2 * (1 + PASSES)
    assert (report.images, report.embedded, report.gone) == (7, 2, 1)
    assert files_in(model, path) == ["0/0.png", "0/1.png", "0/2.png", "1/3.png", "1/4.png", "1/5.png", "new/8.png"]


def test_unreadable_files_are_named_and_left_out(model, folder, path):
    (folder / "0" / "1.png").write_text("no image")
    report = build(model, folder, path, effects=False)
    assert report.problems == ["0/1.png: not a readable image (its content is not an image's); delete or replace it"]
    assert "1 image cannot be read: left out" in str(report) and report.images == 6
    noise().save(folder / "0" / "1.png")
    assert build(model, folder, path, effects=False).embedded == 1


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names of any bytes, and links, are Linux's")
def test_what_cannot_be_named_or_reached_is_left_out_with_a_reason(model, folder, path):
    noise().save(os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "lost.png").symlink_to("nowhere.png")
    report = build(model, folder, path, effects=False)
    assert sorted(report.problems) == [
        "caf?.png: a name that is not valid text; rename it",
        "lost.png: a link to nowhere; delete it, or bring back the file that it leads to",
    ]
    assert report.images == 7
    folder = folder.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9"))
    with pytest.raises(DataError, match="a path that is not valid text; rename the folder"):
        build(model, folder, path)


def test_a_file_that_changes_before_its_regions_are_measured_waits_for_the_next_build(model, folder, path, monkeypatch):
    def change(*arguments):
        embed(*arguments)
        noise(30, 30, seed=9).save(folder / "0" / "0.png")

    embed = building._embed
    with monkeypatch.context() as patch:
        patch.setattr(building, "_embed", change)
        assert build(model, folder, path).unexplained == 1
    passes = count_passes(model)
    assert build(model, folder, path).unexplained == 0 and sum(passes) == 1 + PASSES


def test_a_file_that_goes_while_the_index_is_built_is_named(model, folder, path, monkeypatch):
    listed = building.images_in

    def and_then_one_goes(*arguments):
        found = listed(*arguments)
        (folder / "0" / "1.png").unlink()
        return found

    monkeypatch.setattr(building, "images_in", and_then_one_goes)
    report = build(model, folder, path)
    assert report.problems == ["0/1.png: has gone since the folder was listed"] and report.images == 6


def test_a_killed_build_goes_on(model, folder, path, tmp_path):
    model.save(tmp_path / "model.pth")
    assert exit_code(dying.indexing, tmp_path / "model.pth", folder, path) == KILLED
    assert len(files_in(model, path)) == 4
    passes = count_passes(model)
    assert build(model, folder, path, effects=False).images == 7 and sum(passes) == 3


def test_processes_share_the_files(model, folder, path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    passes = count_passes(model)
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        report = build(model, folder, path, effects=False)
        assert 0 < report.embedded < 7
        assert f"taken out, as far as process {int(rank) + 1} of 2 knows: others may still be at work" in str(report)
    assert report.images == 7 and sum(passes) == 7


def test_readers_see_whole_batches_while_it_is_written(model, path, tmp_path):
    z = np.ones((1, 5), dtype=np.float32)
    with Index(path, model, tmp_path) as writer, Index(path, model) as reader:
        for number in range(3):
            writer.add([FileState(f"{number}.png", 1, 1)], [(1, 1)], z)
            assert len(reader.nearest(z[0], 9)) == number + 1
            with writer._transaction("IMMEDIATE"):  # under way
                writer.db.execute("DELETE FROM images")
                assert len(reader.nearest(z[0], 9)) == number + 1
                writer.db.execute("ROLLBACK")
                writer.db.execute("BEGIN")


def test_an_index_of_another_network_or_version_is_refused_and_made_anew(model, folder, path, monkeypatch):
    build(model, folder, path, effects=False)
    model.threshold = 0.4  # decides another way, on the same embeddings
    assert len(files_in(model, path)) == 7
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(SearchError, match="of another network, or trained anew; run .* build .*photos again") as caught:
        Index(path, model)
    assert "\n" not in str(caught.value)
    report = build(model, folder, path, effects=False)
    assert report.embedded == 7 and "of another network" in report.emptied
    with Index(path, model) as index:  # effects of what was there before cannot become those of what is there now
        assert min(number for number, _ in index.unexplained()) == 8
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    with pytest.raises(SearchError, match="written by another version"):
        Index(path, model)


@pytest.mark.parametrize("damage", [b"no database", None])
def test_a_damaged_index_is_a_line_that_says_what_to_do(model, folder, path, damage):
    build(model, folder, path)
    path.write_bytes(damage or path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SearchError, match="index.sqlite: damaged, .*delete it and run") as caught:
        files_in(model, path)
    assert "\n" not in str(caught.value)


def test_an_index_that_cannot_be_opened_is_a_line(model, folder, path):
    path.mkdir()
    with pytest.raises(SearchError, match="index.sqlite: cannot be used .* check the access rights"):
        build(model, folder, path)


def test_what_is_missing_is_named(model, folder, path, tmp_path):
    with pytest.raises(SearchError, match="no such index; run python -m utils search build FOLDER first"):
        Index(path, model)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        build(model, tmp_path / "nowhere", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no image in it"):
        build(model, tmp_path / "empty", path)
    config = Config(
        dataset="X", data_path=folder, checkpoints_path=folder, outputs_path=tmp_path / "o", compare_path=folder
    )
    with pytest.raises(SearchError, match="no index there; run"):
        find_index(config)
    (tmp_path / "o" / "search").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "o" / "search" / f"{name}.sqlite").touch()
    with pytest.raises(SearchError, match="several indexes .* with --folder"):
        find_index(config)
