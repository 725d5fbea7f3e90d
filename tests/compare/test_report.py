import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from PIL import Image
from samples import break_file, on_disk
from sklearn.datasets import load_sample_image

from utils import __main__ as command_line
from utils.compare.comparison import Comparison
from utils.compare.report import MOST, page
from utils.explain.occlusion import GRID, WEAKEST_MATCH, WINDOWS, all_windows, regression
from utils.explain.removal import strongest_region
from utils.figures.drawing import explained_image
from utils.Grad_CAM import MIN_COUNTERFACTUAL, MIN_FACTUAL
from utils.images.frame import Frame
from utils.Siamese import SiameseNetwork

HOSTILE = on_disk("</script><script>alert(1)</script>&amp;\"'<b>中国 🌼")
FIRST, SECOND = "figure:nth-child(1) .stage", "figure:nth-child(2) .stage"
_, PER_SIDE, _ = WINDOWS[-1]  # those that can be pointed at
START = len(all_windows((32, 48))) - PER_SIDE**2  # the position of the first of them among the regions


def make_network(fit="stretch"):
    torch.manual_seed(0)
    network = SiameseNetwork("Conv4", embedding_dim=4, image_size=(32, 48), fit=fit).eval()
    network.margin = 0.02
    return network


def photographs(folder, count, size=(120, 90)):
    """Parts of a photograph, each another one."""
    china, rng = Image.fromarray(load_sample_image("china.jpg")), np.random.default_rng(0)
    paths = [folder / f"{i:02}.jpg" for i in range(count)]
    for path in paths:
        left, top = (int(rng.integers(0, side - part)) for side, part in zip(china.size, size))
        china.crop((left, top, left + size[0], top + size[1])).save(path)
    return paths


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return Comparison(make_network(), photographs(tmp_path_factory.mktemp("photographs"), 4))


@pytest.fixture(scope="module")
def pair(compared):
    return Comparison(compared.model, compared.paths[:2])


def contents(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


def unpacked(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


# ------------------------------------------------------------------------------------------ what is in the file


def test_the_page_holds_the_measured_effects_of_regions(compared):
    held, effects = contents(page(compared)), compared.effects_of(*range(4))
    regions = effects.regions.shape[1]
    for i, image in enumerate(held["images"]):
        assert np.array_equal(unpacked(image["embedding"], "<f4", 4), effects.embeddings[i].numpy())
        assert np.array_equal(unpacked(image["regions"], "<i2", regions, 4), effects.regions[i].numpy())
        values = unpacked(image["delta"]["values"], "<i2", regions, 4) * image["delta"]["step"]
        assert np.abs(values - effects.delta[i].numpy()).max() < 1e-4 * effects.delta[i].abs().max() and values.any()
    matrix = unpacked(held["regression"]["values"], "<i2", GRID**2, regions) * held["regression"]["step"]
    expected = regression((32, 48)).numpy()
    assert np.abs(matrix - expected).max() < 1e-4 * np.abs(expected).max()
    assert [image["name"] for image in held["images"]] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]


def test_a_name_cannot_end_the_data_and_of_two_alike_the_folder_is_shown(pair, monkeypatch):
    name = HOSTILE.replace("/", "")
    monkeypatch.setattr(pair, "paths", [Path("one", name), Path("two", name)])
    monkeypatch.setattr(pair, "unreadable", {Path("one", "3.jpg"): HOSTILE})
    text = page(pair, network=HOSTILE)
    assert text.count("</script") == text.count("<script") == 2 and "alert" not in text.split("<script>", 1)[1]
    held = contents(text)
    assert [one["name"] for one in held["images"]] == [f"one/{name}", f"two/{name}"]
    assert held["missing"] == [HOSTILE] and held["network"] == HOSTILE


def test_ten_photographs_take_less_than_a_megabyte(tmp_path):
    network = SiameseNetwork("Conv4", embedding_dim=16, image_size=(16, 16)).eval()
    text = page(Comparison(network, photographs(tmp_path, 10, size=(400, 300))))
    assert len(contents(text)["images"]) == 10 and len(text.encode()) < 1e6


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder to work in, with a network."""
    make_network().save(tmp_path / "model.pth", classes=["a", "b"])
    (tmp_path / "config.yml").write_text("dataset: Mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(*arguments):
    command_line.main(["report", *arguments, "--output", "page.html"])
    return contents(Path("page.html").read_text(encoding="utf-8"))


def test_unreadable_images_are_named_and_left_out_and_a_pair_has_its_folder(trained, capsys):
    (trained / "images").mkdir()
    photographs(trained / "images", 3)
    break_file(trained / "images" / "00.jpg", 0.5)
    command_line.main(["report", "images", "--checkpoint", "model.pth"])
    printed = capsys.readouterr()
    written = next((trained / "outputs" / "Mine" / "pairs").glob("*/report.html"))  # two images are left
    note = "model.pth: trained on a, b; similar above a similarity of 0.5"
    assert printed.out.endswith(f"{note}\n{written.relative_to(trained)}\n")
    (line,) = printed.err.splitlines()
    assert line.startswith("left out: ") and "00.jpg: not a readable image" in line
    held = contents(written.read_text(encoding="utf-8"))
    assert [image["name"] for image in held["images"]] == ["01.jpg", "02.jpg"] and note in held["network"]
    assert [line.split(":")[0] for line in held["missing"]] == ["00.jpg"]


def test_a_page_is_written_into_a_folder_and_replaces_no_image(trained, capsys):
    paths = [str(path) for path in photographs(trained, 2)]
    Path("Mine").mkdir()
    os.rename("model.pth", "Mine/model.pth")
    command = ["report", *paths, "--checkpoint", "Mine", "--output"]
    command_line.main([*command, "pages"])
    assert Path("pages/report.html").is_file()
    image = Path(paths[0]).read_bytes()
    with pytest.raises(SystemExit):
        command_line.main([*command, paths[0]])
    assert "cannot be written" in capsys.readouterr().err and Path(paths[0]).read_bytes() == image


def test_a_folder_of_class_folders_is_compared_with_the_classes_in_the_names(trained):
    for image, file in zip(photographs(trained, 3), ("data/tulip/1.jpg", "data/rose/1.jpg", "data/.hidden/2.jpg")):
        (trained / file).parent.mkdir(parents=True, exist_ok=True)
        image.rename(trained / file)
    held = report("data", "--checkpoint", "model.pth")
    assert [image["name"] for image in held["images"]] == ["rose/1.jpg", "tulip/1.jpg"] and not held["missing"]


def test_the_network_is_the_trained_one_or_a_checkpoint_at_the_configured_threshold(trained, capsys):
    (trained / "checkpoints" / "Mine").mkdir(parents=True)
    info = {"classes": ["c", "d"], "config": {}, "calibrated_threshold": 0.5}
    make_network().save(trained / "checkpoints" / "Mine" / "model.pth", **info)
    make_network().save(trained / "bare.pth")  # without what training leaves
    (trained / "config.yml").write_text("dataset: Mine\nthreshold: 0.1")
    photographs(trained, 2)
    for options, network in (([], "Mine: trained on c, d"), (["--checkpoint", "bare.pth"], "does not name")):
        held = report("00.jpg", "01.jpg", *options)
        assert capsys.readouterr().out.endswith(f"{network}; similar above a similarity of 0.9\npage.html\n")
        assert network in held["network"] and held["threshold"] == 0.1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["one.jpg", "./one.jpg"], "one.jpg: 1 image; give two or more, or a folder of them"),
        (["empty"], "empty: 0 images; "),
        (["many"], f"many: more than {MOST} images, .*; give fewer"),
        (["one.jpg", "images/0.jpg", "--checkpoint", "model.pth"], "images/0.jpg: not a readable image"),
        (["images", "--checkpoint", "config.yml"], "config.yml: not a checkpoint"),
        (["images", "x" * 5000], "no such file or folder"),  # longer than a file's name may be
    ],
)
def test_what_cannot_be_compared_is_one_line_and_exit_code_2(trained, capsys, arguments, words):
    for name, count in (("images", 2), ("many", MOST + 1), ("empty", 0)):
        (trained / name).mkdir()
        for k in range(count):
            (trained / name / f"{k}.jpg").touch()
    photographs(trained, 1)[0].rename(trained / "one.jpg")
    with pytest.raises(SystemExit) as caught:
        report(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and re.search(words, error) and error.count("\n") == 1


# ------------------------------------------------------------------------------------------ in a browser

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None or os.name == "nt", reason="no Chromium here; Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def chromium():
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    chromium.problems.clear()
    yield chromium
    assert chromium.problems == []


@pytest.fixture(scope="module")
def files(pair, compared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, images in (("pair", pair), ("table", compared)):
        (folder / f"{name}.html").write_text(page(images, "trained on things"), encoding="utf-8")
    return folder


@pytest.fixture
def opened(browser, files):
    """A browser that shows the page of the pair."""
    browser.open(files / "pair.html")
    return browser


def similarity(model, z1, z2):
    return 1 - min(float((z1 - z2).norm()) / model.margin, 1)


def at_region(row, column, count=PER_SIDE, share=WINDOWS[-1].side):
    """The middle of a window, (across, down) in shares of the image's sides."""
    return tuple(share / 2 + k * (1 - share) / (count - 1) for k in (column, row))


@in_a_browser
def test_maps_and_matches_are_those_of_explain(opened, pair):
    effects = pair.effects_of(0, 1)
    sign = 1 if pair.explain(0, 1).is_similar[0] else -1
    raw = sign * pair.explain(0, 1).raw[0].numpy()
    raw /= np.abs(raw).max()
    shown = np.array(opened.ask("evidence(images[0], images[1]).map((map) => [...map])")).reshape(raw.shape)
    assert (raw > 0).any() and (raw < 0).any() and np.abs(shown - raw).max() < 2e-3
    for towards in (1, -1):
        strongest = np.abs(raw).max((1, 2), keepdims=True)
        for against, least in ((False, MIN_FACTUAL * strongest), (True, MIN_COUNTERFACTUAL)):
            expected = np.where(towards * raw > least, towards * raw, 0)
            if against:  # it is, if occluding it strengthens the decision
                regions = strongest_region(torch.from_numpy(expected)[None])
                stronger = towards * effects.of_masks([0], [1], regions)[0] > 0
                expected = np.where(stronger[:, None, None], expected, 0)
            ask = (
                f"evidence(images[0], images[1]).map((map, k) => "
                f"[...shownOf(map, {towards}, {str(against).lower()}, images[k], images[1 - k])])"
            )
            found = np.reshape(opened.ask(ask), raw.shape)
            clear = np.abs(towards * raw - least) > 2e-3  # of the limit
            assert ((found > 0) == (expected > 0))[clear].all()
            assert np.abs(found - expected)[clear].max() < 2e-3
    places = np.arange(100, 300, 2)
    occluded = torch.zeros(1, 2, GRID * GRID, dtype=torch.bool)
    occluded[:, :, places] = True
    for i, change in enumerate(effects.of_masks([0], [1], occluded.view(1, 2, GRID, GRID))[0]):
        found = opened.ask(f"effectOfPositions(images[{i}], images[{1 - i}], {places.tolist()})")
        assert found == pytest.approx(float(change), rel=0.01, abs=1e-4)
    for region in (2, START + 3):
        common = 2 * effects.density[1, ..., :-1].numpy() @ effects.delta[0, region].numpy()
        found = opened.ask(f"[...spread(interactions(images[0], {region}, images[1]))]")
        assert np.abs(np.reshape(found, common.shape) - common).max() < 2e-3 * np.abs(common).max()


@in_a_browser
def test_a_region_pointed_at_is_outlined_and_its_match_lit_and_a_click_occludes_it(opened, pair):
    effects, (z1, z2) = pair.effects_of(0, 1), pair.effects_of(0, 1).embeddings
    before = similarity(pair.model, z1, z2)
    assert float(opened.text("#number")) == pytest.approx(before, abs=0.006) and 0.1 < before < 0.9
    windows = slice(START, START + PER_SIDE**2)
    common = 2 * effects.delta[0, windows] @ effects.delta[1, windows].T
    has_match = common.amax(1) >= WEAKEST_MATCH * common.max()
    moves = (effects.on_pairs([0], [1])[0, 0, windows].abs() * has_match).argmax()  # of those that match, it does most
    region, spot = START + int(moves), at_region(*divmod(int(moves), PER_SIDE))
    after = similarity(pair.model, z1 - effects.delta[0, region], z2)
    pixels = 'document.querySelectorAll("canvas")[{}].toDataURL()'.format
    plain = opened.ask(pixels(1))
    opened.mouse(FIRST, *spot)
    told = opened.text("#readout")
    assert f"{before:.2f} → {after:.2f}" in told and abs(after - before) > 0.01
    assert f"for “{'similar' if after < before else 'dissimilar'}”" in told
    top, bottom, left, right = effects.regions[0, region].tolist()
    place = opened.ask(
        f"(({{ style }}) => ['top', 'height', 'left', 'width'].map((side) => parseFloat(style[side])))"
        f"(document.querySelector('{FIRST} .here'))"
    )
    assert place == pytest.approx(
        [100 * top / 32, 100 * (bottom - top) / 32, 100 * left / 48, 100 * (right - left) / 48],
        abs=1e-3,  # to which the browser rounds
    )
    row = common[region - START]
    assert row.max() > 0 and opened.ask(f"document.querySelectorAll('{SECOND} .there').length") == 1
    best = effects.regions[1, START + int(row.argmax())].tolist()
    found = opened.ask(f"['top', 'left'].map((s) => parseFloat(document.querySelector('{SECOND} .there').style[s]))")
    assert found == pytest.approx([100 * best[0] / 32, 100 * best[2] / 48], abs=1e-3)
    assert opened.ask(pixels(1)) != plain
    opened.mouse(FIRST, *spot, click=True)
    assert float(opened.text("#number")) == pytest.approx(after, abs=0.006) and f"was {before:.2f}" in opened.text(
        "#before"
    )
    opened.mouse(SECOND, *at_region(1, 1), click=True)  # of the other image too: exact, as each embedding is its own
    both = similarity(pair.model, z1 - effects.delta[0, region], z2 - effects.delta[1, START + PER_SIDE + 1])
    # The page's numbers are of half precision.
    assert float(opened.text("#number")) == pytest.approx(both, abs=0.006) and "about" not in opened.text("#before")
    opened.mouse(FIRST, *spot, click=True)
    opened.mouse("#reset", click=True)
    assert opened.text("#number") == f"{before:.2f}" and opened.text("#before") == "similarity"
    assert opened.ask(pixels(1)) == plain and opened.ask("document.querySelectorAll('.window').length") == 0


@in_a_browser
@pytest.mark.parametrize(
    "before, after, words",
    [
        (0.9, 0.904, "similarity 0.900 → 0.904"),
        (-0.2, 0.1, "similarity 0.00 → 0.10"),
        (-0.3, -0.3003, "distance / margin 1.3000 → 1.3003"),
    ],
)
def test_a_change_has_as_many_decimals_as_show_it(opened, before, after, words):
    assert opened.ask(f"change({before}, {after})") == words


@in_a_browser
def test_of_several_regions_the_effects_are_added_where_they_do_not_overlap(opened, pair):
    effects = pair.effects_of(0)
    z, delta, last = effects.embeddings[0], effects.delta[0], START + PER_SIDE**2 - 1  # in the opposite corner
    (*_, right), (*_, left, far) = effects.regions[0, START : START + 2].tolist()  # of neighbours in a row
    free = (far - right) / (far - left)
    for regions, expected in (
        ([START, last, START], delta[START] + delta[last]),
        ([START, START + 1], delta[START] + free * delta[START + 1]),
    ):
        found = torch.tensor(opened.ask(f"[...embeddingWith(images[0], {regions})]"))
        assert 0 < free < 1 and torch.allclose(z - found, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


@in_a_browser
def test_the_keyboard_does_all_that_the_pointer_does(opened):
    opened.press("Tab", "Tab")
    start = opened.ask("state.pair.pointed.region")
    opened.press("ArrowRight", "ArrowDown")
    assert opened.ask("state.pair.pointed.region") == start + 1 + PER_SIDE
    opened.press(*["ArrowUp"] * 9, *["ArrowLeft"] * 9)
    assert opened.ask("state.pair.pointed.region") == START and "With this region" in opened.text("#readout")
    score = "$('is').style.left"
    before = opened.ask(score)
    opened.press("Enter")
    assert opened.ask(score) != before and opened.ask("document.querySelectorAll('.occluded').length") == 1
    opened.press("Escape")
    assert opened.ask(score) == before and opened.ask("document.querySelectorAll('.occluded').length") == 0
    opened.press("Tab")
    assert opened.ask("document.activeElement === figures[1].stage") and opened.ask("state.pair.pointed.side") == 1


@in_a_browser
def test_a_finger_points_with_its_first_tap_and_clicks_with_its_second(browser, files):
    browser.open(files / "pair.html", width=390, height=844)
    before = browser.text("#number")
    browser.tap(FIRST, *at_region(1, 1))
    assert browser.text("#number") == before and "With this region" in browser.text("#readout")
    browser.tap(FIRST, *at_region(1, 1))
    assert browser.text("#number") != before


@in_a_browser
def test_the_threshold_turns_the_decision_and_the_colours_round(opened, pair):
    value = similarity(pair.model, *pair.effects_of(0, 1).embeddings)
    colours = 'document.querySelectorAll("canvas")[0].toDataURL()'
    decisions = ["similar", "dissimilar"] if value > 0.5 else ["dissimilar", "similar"]
    drawn = [opened.ask(colours)]
    assert opened.text("#verdict") == decisions[0]
    other = value + 0.05 if value > 0.5 else value - 0.05
    opened.ask(f"$('threshold').value = {other}; $('threshold').dispatchEvent(new Event('input'))")
    assert opened.text("#verdict") == decisions[1] and opened.text(".evidence") == f"Factual: for “{decisions[1]}”"
    drawn.append(opened.ask(colours))
    opened.mouse(".evidence:nth-child(2)", click=True)
    drawn.append(opened.ask(colours))
    assert drawn[0] != drawn[1] != drawn[2]
    assert opened.ask("[...document.querySelectorAll('.evidence')].map((e) => e.ariaPressed)") == ["false", "true"]


def pixels(browser):
    """Of the first image, as drawn and as it is, (H, W, 3)."""
    drawn = browser.ask('figures[0].canvas.toDataURL().split(",")[1]')
    height, width = browser.ask("[images[0].pixels.height, images[0].pixels.width]")
    plain = browser.ask("[...images[0].pixels.data]")
    return (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB"), dtype=float),
        np.reshape(plain, (height, width, 4))[..., :3],
    )


@in_a_browser
def test_maps_are_painted_as_the_notebooks_paint_them(opened, pair):
    drawn, plain = pixels(opened)
    photograph = Image.fromarray(plain.astype(np.uint8))
    expected = explained_image(photograph, pair.explain(0, 1), 0, "factual", None)
    away = np.abs(drawn - expected)
    # A map is resized twice in a notebook, once here.
    coloured = np.abs(expected - plain.astype(float)).mean()
    assert coloured > 2 and away.mean() < 0.1 * coloured
    opened.mouse(".evidence:nth-child(1)", click=True)  # again: the photograph as it is
    assert opened.ask("mapButtons.every((button) => button.ariaPressed === 'false')")
    drawn, plain = pixels(opened)
    assert (drawn == plain).all()


@in_a_browser
def test_an_image_without_evidence_says_so(opened):
    told = "figures.map(({ badge }) => badge.hidden ? '' : badge.textContent)"
    sign = opened.ask("similarity(images[0].z, images[1].z) > state.threshold ? 1 : -1")
    for share, words in ((-1, "no such evidence"), (0.1, "hardly any")):
        maps = f"[{sign}, {share * sign}].map((value) => new Float64Array(GRID * GRID).fill(value))"
        opened.ask(f"state.pair.evidence = {maps}; refresh()")
        assert opened.ask(told) == ["", words]
    opened.mouse(FIRST)
    assert opened.ask(told) == ["", ""]  # the other image shows what matches, not evidence


@in_a_browser
def test_a_table_of_all_images_whose_cells_open_pairs(browser, files, compared):
    browser.open(files / "table.html")
    shown = browser.ask("cells.map((line) => line.map((link) => (link ? Number(link.textContent) : 1)))")
    assert np.abs(np.array(shown) - compared.similarity).max() < 0.0051
    similar = int((compared.similarity[np.triu_indices(4, 1)] > 0.5).sum())
    assert f"4 images: {similar} of 6 pairs" in browser.text("#count")
    browser.ask("$('threshold').value = 0; $('threshold').dispatchEvent(new Event('input'))")
    assert f"{int((compared.similarity[np.triu_indices(4, 1)] > 0).sum())} of 6" in browser.text("#count")
    second = sorted(similarity(compared.model, *compared.embeddings[[i, j]]) for i in range(4) for j in range(i))[-2]
    browser.ask(f"$('threshold').value = {second + 0.01}; $('threshold').dispatchEvent(new Event('input'))")
    assert "1 of 6 pairs is similar" in browser.text("#count")
    browser.press(*["Tab"] * 7)  # to the threshold, then from cell to cell
    assert browser.ask("document.activeElement === cells[1][3]")
    browser.press("Enter")
    browser.wait("!$('pair-view').hidden")
    assert [browser.text(f"figure:nth-child({k}) bdi") for k in (1, 2)] == ["01.jpg", "03.jpg"]
    assert browser.text("#number") == f"{compared.similarity[1, 3]:.2f}"
    browser.press("Escape")
    browser.wait("!$('table-view').hidden && document.activeElement === cells[1][3]")
    browser.mouse("tbody tr:nth-child(1) td:nth-of-type(3) a", click=True)
    browser.wait("!$('pair-view').hidden && $('page').ariaBusy === 'false'")
    assert browser.ask("location.hash") == "#0-2"


@in_a_browser
def test_names_are_shown_as_they_are_whatever_they_hold(browser, compared, monkeypatch, tmp_path):
    names = [f"{HOSTILE}{k}" for k in range(3)] + ["\udce9.jpg"]  # a byte on a disk that is no text
    monkeypatch.setattr("utils.compare.report.names_with_folders", lambda paths: names)
    monkeypatch.setattr(compared, "unreadable", {compared.paths[0]: HOSTILE})
    (tmp_path / "page.html").write_text(page(compared, HOSTILE), encoding="utf-8")
    browser.open(f"{tmp_path / 'page.html'}#0-1")
    browser.mouse(FIRST)
    assert browser.ask("[...document.querySelectorAll('tbody bdi')].map((e) => e.textContent)") == names
    assert HOSTILE in browser.text("#missing") and browser.text("#network") == HOSTILE
    assert [browser.text(f"figure:nth-child({k}) bdi") for k in (1, 2)] == names[:2]
    assert browser.ask("document.querySelectorAll('b, script').length") == 2  # the page's own two


@in_a_browser
@pytest.mark.parametrize("name", ["pair", "table"])
def test_it_fits_a_phone(browser, files, name):
    browser.open(files / f"{name}.html", width=390, height=844)
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    if name == "table":  # whose names stand in lines, not letter below letter
        assert browser.ask("Math.min(...[...document.querySelectorAll('tbody bdi')].map((e) => e.offsetWidth))") > 60


@in_a_browser
def test_on_a_padded_image_only_its_own_windows_can_be_chosen(browser, tmp_path):
    paths = photographs(tmp_path, 2, size=(160, 40))
    network = make_network(fit="pad")
    assert network.frame == Frame((32, 48), "pad", network.frame.mean)
    (tmp_path / "page.html").write_text(page(Comparison(network, paths)), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    for across, down in ((0.01, 0.01), (0.99, 0.99)):
        browser.mouse(FIRST, across, down)
        top, bottom, *_ = browser.ask("[...images[0].regions.subarray(4 * state.pair.pointed.region)].slice(0, 4)")
        assert 10 <= (top + bottom) / 2 <= 22  # 48 x 12 pixels of the image lie in rows 10 to 22
