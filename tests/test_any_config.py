"""Whatever is in a configuration file, reading it gives a Config or a ConfigError."""

import tempfile
from pathlib import Path

import pytest
import yaml

from utils.config import load_config
from utils.system.errors import ConfigError
from utils.system.settings import Config, Hyperparameters, ImageOptions

pytest.importorskip("hypothesis", reason="pip install -r requirements-dev.txt")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

WORDS = ["auto", "skip", "../x", "a/b", "~nobody/x", "\0", "1e-3", "[1", "^(", "(a)", "é" * 300]
SCALARS = [st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4)]
VALUES = st.one_of(*SCALARS, st.sampled_from(WORDS))
SECTIONS = [Config, ImageOptions, Hyperparameters]
KEYS = [key for section in SECTIONS for key in section.model_fields]
NAMES = st.one_of(st.sampled_from([*KEYS, "datasets", "Synthetic"]), VALUES.filter(lambda value: value is not None))
TREES = st.recursive(
    VALUES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=5)),
    max_leaves=12,
)
TOKENS = [": ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<", "!!python/name:os.system ", "\n", "a", "1"]
FILES = st.one_of(
    st.dictionaries(NAMES, TREES, max_size=8).map(lambda tree: yaml.dump(tree, allow_unicode=True).encode()),
    TREES.map(lambda tree: yaml.dump(tree).encode("utf-16")),
    st.text(alphabet=st.characters(codec="utf-8"), max_size=60).map(str.encode),
    st.lists(st.sampled_from(TOKENS)).map("".join).map(str.encode),
    st.binary(max_size=60),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=FILES, dataset=st.one_of(st.none(), st.text(max_size=5), st.just("Synthetic")))
@example(content=b"a: &a [*a]", dataset=None)
@example(content=b"&a {dataset: *a}", dataset=None)
@example(content=b"<<: 1", dataset=None)
@example(content=b"? [a]\n: b", dataset=None)
@example(content=b"dataset: x\nimage: {size: [.inf, 1e999]}", dataset=None)
@example(content="dataset: Blumen\nmargin: zwölf".encode("gbk", "ignore"), dataset=None)
@example(content=b"seed: 99999999999999999999999999\ndataset: x", dataset=None)
@example(content=b"dataset: x\ndata_path: ~nobody_at_all/x", dataset=None)
def test_any_file_gives_a_config_or_a_config_error(content, dataset):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yml"
        path.write_bytes(content)
        try:
            config = load_config(path, dataset)
        except ConfigError as error:
            assert "config.yml" in str(error)
        else:
            assert isinstance(config, Config)
            config.save(Path(folder) / "again.yml")  # and what was read can be kept
