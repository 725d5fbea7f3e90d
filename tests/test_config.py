"""`load_config`: what a file says arrives, and what is wrong in it is named."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from IPython.core.interactiveshell import InteractiveShell

from utils.config import SANDBOX, ConfigError, load_config
from utils.system.errors import UserError

ROOT = Path(__file__).parents[1]

# As users of the paper's public implementation have it: comments, uneven indentation, quoted text, 5e-6 (which YAML
# reads as text).
PUBLIC = """
data_path: 'Data/Flowers'
number_of_iterations: 1
backbone_model: 'ResNet50'   # or another
pretrained: True
checkpoints_path: 'checkpoints/Flowers'
test_size: 0.1
valid_size: 0.1
image:
        size: [320, 320]
        normalization:
            mean: [0.485, 0.456, 0.406]
            std:  [0.229, 0.224, 0.225]
        Channels: 3
        HorizontalFlip: 0.5
        VerticalFlip: 0.5
        RandomRotationDegrees: 45
        brightness: 0.0
        contrast: 0.0
        saturation: 0.0
        hue: 0.0
hyperparameters:
  epochs: 100
  verbose: True
  batch_size: 4
  num_workers: 0
  optimizer: 'Adam'
  learning_rate: 5e-6
  weight_decay: 0.01
  momentum: 0.9
  nesterov: False
  max_norm: 1.0
early_stopping:
    patience: 25
    min_delta: 0.00000001
LRScheduler:
   patience: 15
   min_lr: 0.00000001
   factor: 0.5
   verbose: True
seed: 42
cuda: True
gpu: 0
"""

BLOCKS = """
dataset: Small
seed: 1
image: {size: [64, 96], HorizontalFlip: 0.25, normalization: {mean: [0.1, 0.2, 0.3], std: [1, 1, 1]}}
hyperparameters: {epochs: 5, batch_size: 8}
datasets:
  Small:
    image: {size: [32, 48], normalization: {std: [2, 2, 2]}}
    hyperparameters: {epochs: 2}
  Elsewhere: {data_path: /images/elsewhere, seed: 2}
  Mine:
"""


@pytest.fixture
def load(tmp_path):
    def load(text, dataset=None):
        path = tmp_path / "config.yml"
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
        return load_config(path, dataset)

    return load


@pytest.fixture
def error_lines(load, tmp_path):
    def error_lines(text, dataset=None):
        """The error's lines, without the file's name, with which each must begin."""
        with pytest.raises(ConfigError) as caught:
            load(text, dataset)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(str(tmp_path / "config.yml")) for line in lines)
        return [line.removeprefix(str(tmp_path / "config.yml")).removeprefix(": ") for line in lines]

    return error_lines


def leaves(tree, prefix=()):
    for key, value in tree.items():
        yield from leaves(value, (*prefix, key)) if isinstance(value, dict) else [((*prefix, key), value)]


# ---------------------------------------------------------------------------------------- what arrives


def test_the_public_implementations_file_loads_unchanged_and_every_value_arrives(load):
    config = load(PUBLIC)
    expected = dict(leaves(yaml.safe_load(PUBLIC)))
    assert len(expected) == 37 and expected["hyperparameters", "learning_rate"] == "5e-6"
    expected |= {
        ("hyperparameters", "learning_rate"): 5e-6,
        ("data_path",): Path("Data/Flowers"),
        ("checkpoints_path",): Path("checkpoints/Flowers"),
    }
    for keys, value in expected.items():
        found = config
        for key in keys:
            found = getattr(found, key)
        assert found == (tuple(value) if isinstance(value, list) else value), keys
        assert isinstance(found, bool) == isinstance(value, bool), keys
    assert (config.dataset, config.outputs_path) == ("Flowers", Path("outputs/Flowers"))
    assert config.LRScheduler.name == "ReduceLROnPlateau"


def test_a_block_overrides_key_by_key_at_every_depth(load):
    config = load(BLOCKS)
    image, options = config.image, config.hyperparameters
    assert (config.dataset, config.seed, image.size, image.HorizontalFlip) == ("Small", 1, (32, 48), 0.25)
    assert (image.normalization.mean, image.normalization.std) == ((0.1, 0.2, 0.3), (2, 2, 2))
    assert (options.epochs, options.batch_size) == (2, 8)


def test_the_dataset_asked_for_wins_over_the_files_own(load):
    for dataset, data_path, seed, size in (
        ("Elsewhere", "/images/elsewhere", 2, (64, 96)),
        ("Mine", "Data/Mine", 1, (64, 96)),  # an empty block
        ("Small", "Data/Small", 1, (32, 48)),
    ):
        config = load(BLOCKS, dataset)
        assert (config.dataset, config.data_path, config.seed) == (dataset, Path(data_path), seed)
        assert config.image.size == size and config.outputs_path == Path("outputs") / dataset


@pytest.mark.parametrize("name", ["0625", "2018_01", "1.10", "No", "2024-01-05", "1e3", "null", "~"])
def test_the_name_of_a_dataset_is_taken_as_written(load, name):
    for text in (f"dataset: {name}\nseed: 5", f"datasets: {{{name}: {{seed: 5}}}}", f"seed: 5\ndata_path: Data/{name}"):
        config = load(text, name)
        assert (config.dataset, config.data_path, config.seed) == (name, Path("Data") / name, 5)


def test_a_name_that_is_left_empty_is_none_and_null_elsewhere_is_no_value(load):
    config = load("dataset:\ndata_path: Data/Cars\ngroup_pattern: null\nweights: ~")
    assert (config.dataset, config.group_pattern, config.weights) == ("Cars", None, None)


def test_without_blocks_any_dataset_name_is_a_folder_under_data(load):
    assert load("seed: 1", "Cars").data_path == Path("Data/Cars")


@pytest.mark.parametrize(
    "text, dataset", [(PUBLIC, None), (BLOCKS, "Small"), (BLOCKS, "Elsewhere"), (BLOCKS + "# Größe 日本\n", "Mine")]
)
def test_what_save_writes_loads_back_equal(load, tmp_path, text, dataset):
    config = load(text, dataset)
    config.save(tmp_path / "saved.yml")
    assert load_config(tmp_path / "saved.yml") == config == load_config(tmp_path / "saved.yml", config.dataset)


@pytest.mark.parametrize("text, value", [("0.25", 0.25), ("[cats, 0625]", ("cats", "0625")), ("null", None)])
def test_classes_to_hold_out_are_a_share_or_names(load, tmp_path, text, value):
    config = load(f"dataset: A\nunseen_classes: {text}")
    assert config.unseen_classes == value
    config.save(tmp_path / "saved.yml")
    assert load_config(tmp_path / "saved.yml").unseen_classes == value


def test_a_byte_order_mark_is_no_obstacle(load):
    assert load(b"\xef\xbb\xbf" + PUBLIC.encode()) == load(PUBLIC)


@pytest.mark.parametrize("dataset", [None, "Synthetic", "Flowers", "Skin_cancer", "AirBnB", "car"])
def test_the_shipped_file_serves_every_dataset(load, dataset):
    git = subprocess.run(["git", "show", "HEAD:config.yml"], cwd=ROOT, capture_output=True)  # without a user's edits
    if git.returncode:
        pytest.skip("not a git checkout")
    config = load(git.stdout, dataset)
    assert (config.dataset, config.data_path) == (dataset or "Synthetic", Path("Data") / config.dataset)


def test_the_sandbox_wins_over_path_and_dataset(load, tmp_path, monkeypatch):
    sandbox = tmp_path / "sandbox"
    sandbox.mkdir()
    text = f"dataset: Tested\ncheckpoints_path: kept\noutputs_path: '{(tmp_path / 'out').as_posix()}'"
    (sandbox / "config.yml").write_text(text, encoding="utf-8")
    monkeypatch.setenv(SANDBOX, str(sandbox))
    config = load(BLOCKS, "Mine")
    assert config.dataset == "Tested"
    assert (config.data_path, config.checkpoints_path) == (sandbox / "Data/Tested", sandbox / "kept")
    assert config.outputs_path == tmp_path / "out"


# -------------------------------------------------------------------------------------- what is an error


@pytest.mark.parametrize(
    "text, key, words",
    [
        ("imgae: {size: [32, 32]}", "imgae", ["unknown key", "did you mean 'image'?"]),
        ("image: {normalization: {men: [0, 0, 0]}}", "image.normalization.men", ["did you mean 'mean'?"]),
        ("image: {normalization: {mean: [0.5, 116, 0.4]}}", "image.normalization.mean.1", ["less than or equal to 1"]),
        ("margin: inf", "margin", ["finite number", "got 'inf'"]),
        ("early_stopping: {xyz: 3}", "early_stopping.xyz", ["unknown key", "known here are patience, min_delta"]),
        ("hyperparameters: {epochs: 1.5}", "hyperparameters.epochs", ["valid integer", "got '1.5'"]),
        ("seed: null", "seed", ["integer", "got None"]),
        ("hyperparameters: {learning_rate: .nan}", "hyperparameters.learning_rate", ["number", "got '.nan'"]),
        ("pretrained: maybe", "pretrained", ["True or False", "got 'maybe'"]),
        ("test_size: 1", "test_size", ["less than 1", "got '1'"]),
        ("image: {size: [224, 224, 3]}", "image.size", ["at most 2 items", "got ['224', '224', '3']"]),
        ("image: {size: 224}", "image.size", ["a list such as [224, 224]", "got '224'"]),
        ("on_bad_image: stop", "on_bad_image", ["'skip' or 'error'", "got 'stop'"]),
        ("image: {size: [224, 8]}", "image.size.1", ["16", "got '8'"]),
        ("image:", "image", ["a block of settings", "got None"]),
        ("data_path:", "data_path", ["a path", "got None"]),
        ("group_pattern: '([a-z'", "group_pattern", ["should be a valid regular expression"]),
        ("group_pattern: '^(a)_(b)'", "group_pattern", ["one pair of brackets"]),
        ("hyperparameters: {epochs: 0}", "hyperparameters.epochs", ["0 trains nothing here; use 1 or more, or pre"]),
        ("threshold: {false_matches: 2}", "threshold", ["a number between 0 and 1", "{false_matches: 0.01}"]),
        ("threshold: {false: 0.1}", "threshold", ["a number between 0 and 1", "{false_matches: 0.01}"]),
        ("threshold: high", "threshold", ["a number between 0 and 1", "got 'high'"]),
        ("unseen_classes: cats", "unseen_classes", ["a share of the classes such as 0.25, or a list", "got 'cats'"]),
        ("unseen_classes: 1", "unseen_classes", ["a share of the classes", "got '1'"]),
        ("weights: nowhere.pth", "weights", ["there is nothing", "got 'nowhere.pth'"]),
        ("hyperparameters: {batch_size: 2}", "hyperparameters.batch_size", ["use 4 or more, or training_pairs: sam"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_was_expected_and_found(error_lines, text, key, words):
    for whole in (
        "dataset: A\n" + text,
        "dataset: A\ndatasets: {A: {" + text.removesuffix(":") + (": null" if text.endswith(":") else "") + "}}",
    ):
        [line] = error_lines(whole)
        assert line.startswith(key + ": ") and all(word in line for word in words), line
        assert "pydantic" not in line and "<class" not in line and "Input" not in line


def test_every_problem_gets_a_line(error_lines):
    lines = error_lines("dataset: A\nsede: 1\nmargin: -1\nimage: {hue: 2, size: 1}")
    assert sorted(line.split(": ")[0] for line in lines) == ["image.hue", "image.size", "margin", "sede"]


@pytest.mark.parametrize(
    "text, dataset, words",
    [
        (BLOCKS, "Smal", ["'Smal'", "Small, Elsewhere, Mine"]),
        (BLOCKS.replace("dataset: Small", "dataset: Absent"), None, ["'Absent'", "Small, Elsewhere, Mine"]),
        (BLOCKS.replace("dataset: Small", ""), None, ["missing", "Small, Elsewhere, Mine"]),
        ("seed: 1", None, ["missing", "Data/"]),
        (PUBLIC, "Skin_cancer", ["'Skin_cancer'", "Flowers"]),  # or it would train on the flowers under another name
        ("dataset: Flowers", "Skin_cancer", ["'Skin_cancer'", "Flowers"]),
        ("dataset: a/b", None, ["plain name", "'a/b'"]),
        ("dataset: a?b", None, ["plain name", "'a?b'"]),  # Windows forbids it
        ("dataset: ..", None, ["plain name", "'..'"]),
    ],
)
def test_a_dataset_that_the_file_does_not_have(error_lines, text, dataset, words):
    [line] = error_lines(text, dataset)
    assert line.startswith("dataset: ") and all(word in line for word in words), line


@pytest.mark.parametrize(
    "content, start",
    [
        (PUBLIC.encode("utf-16"), "not UTF-8"),
        ("dataset: Blüten".encode("latin-1"), "not UTF-8"),
        ("dataset: A\nimage: {size: [1, 2}\n", ", line 2: not valid YAML"),
        ("dataset: A\nseed: 1\n  hue: 1\n", ", line 3: not valid YAML"),
        ("dataset: A\nimage:\n  hue: 0\n  hue: 0.1\n", ", line 4: not valid YAML (hue: written twice)"),
        ("dataset: A\ndatasets: [A, B]\n", "datasets: expected a block of settings"),
        ("dataset: A\ndatasets: {A: {}, B: [seed]}\n", "datasets: expected a block of settings"),
        ("- dataset\n- A\n", "expected `key: value`"),
        ("", "expected `key: value`"),
    ],
)
def test_a_file_that_is_no_configuration(error_lines, content, start):
    [line] = error_lines(content)
    assert line.startswith(start), line


@pytest.mark.parametrize("path", [r"D:\new\train", r"C:\Users\me", r"D:\_old", "D:\\"])
def test_a_path_of_windows_in_double_quotes(error_lines, load, path):
    [line] = error_lines(f'dataset: A\ndata_path: "{path}"\n')
    assert "not valid YAML" in line and line.endswith("; use single quotes, or /, for a path"), line
    assert load(f"dataset: A\ndata_path: '{path}'\n").data_path == Path(path)


def test_letters_written_as_escapes_are_no_mistake(load):
    assert load('dataset: "\\u82b1\\U0001F33C"').dataset == "\u82b1\U0001f33c"


@pytest.mark.parametrize(
    "text, start, end",
    [
        ("# a、b\nimage：{}\nseed: 1", ", line 4: not valid", "or the one above; write : and a space instead of ："),
        ("image: {size: [1, 2}\n# a：b，c", ", line 2: not valid", "or the one above"),
        ("image: {size: [128，64]}", "image.size.0: ", "got '128，64'; write , and a space instead of ，"),
        ("image: {size: 【128, 64】}", "image.size: ", "got '【128'; write [ instead of 【"),
        ("hyperparameters: {epochs：3}", "hyperparameters.epochs：3: ", "'epochs'?; write : and a space instead of ："),
        ("seed: seven", "seed: ", "got 'seven'"),
    ],
)
def test_signs_of_a_chinese_keyboard_are_named(error_lines, text, start, end):
    [line, *_] = error_lines("dataset: A\n" + text)
    assert line.startswith(start) and line.endswith(end), line


def test_a_merged_block_is_not_a_key_written_twice(load):
    text = "dataset: C\ndatasets:\n  A: &a {seed: 1}\n  B: &b {<<: *a, seed: 2}\n  C: {<<: *b, gpu: 3}"
    assert (load(text).seed, load(text).gpu) == (2, 3)


def test_settings_that_depend_on_each_other(load):
    assert load("dataset: A\npretrained: True\nhyperparameters: {epochs: 0}").head_steps == 300
    assert load("dataset: A\nhyperparameters: {head_steps: 50}").head_steps == 0
    load("dataset: A\ntraining_pairs: sampled\nhyperparameters: {batch_size: 2}")


def test_a_file_of_weights_may_lie_in_the_home_folder(load, tmp_path, monkeypatch):
    monkeypatch.setenv("USERPROFILE" if os.name == "nt" else "HOME", str(tmp_path))
    (tmp_path / "mine.pth").touch()
    assert load("dataset: A\nweights: ~/mine.pth").weights == tmp_path / "mine.pth"


def test_a_path_that_leads_to_no_file(tmp_path):
    for name in ("absent.yml", ""):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(str(tmp_path / name)) and "give another file as `config_path` or --config" in line


def test_a_notebook_shows_the_message_and_no_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell()
    shell.run_cell("from utils.config import load_config\nload_config('absent.yml')")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).strip().startswith("ConfigError: absent.yml: cannot be read (No such file")
    assert "Traceback" not in shown.out + shown.err and len((shown.out + shown.err).strip().splitlines()) == 1
    assert issubclass(ConfigError, UserError)
