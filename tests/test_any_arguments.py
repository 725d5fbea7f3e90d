"""Whatever follows `python -m utils`, there is a result, or a line that says what is wrong and exit code 2."""

import contextlib
import io
import re
import urllib.error

import pytest
import torch
from samples import make_files

from utils import __main__ as command_line
from utils import training

pytest.importorskip("hypothesis", reason="pip install -r requirements-dev.txt")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def run(arguments):
    """Exit code and what was printed, out and err."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line.main(arguments)
        except SystemExit as left:
            code = left.code
    return code, out.getvalue(), err.getvalue()


COMMANDS = re.findall(r"^    (\w+)", run(["--help"])[1], re.MULTILINE)
assert {"audit", "download", "train"} <= set(COMMANDS)
OPTIONS = sorted({option for command in COMMANDS for option in re.findall(r"--\w+", run([command, "--help"])[1])})
# A name of a file may hold anything but line breaks, which nobody types; surrogates stand for bytes that are no text.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp"]), max_size=6)
WORDS = st.one_of(
    st.sampled_from([*COMMANDS, *OPTIONS, *(f"{option}=x" for option in OPTIONS), "-h", "--", "-"]),
    st.sampled_from(["Mine", "Gone", "Flowers", "config.yml", "bad.yml", "other.yml", "none.yml", "Data", "Data/Mine"]),
    st.sampled_from(["Data/Mine/a/0.png", ".", "..", "/", "~nobody/x", "1", "-1", "1e999", "x" * 5000, "con", "*"]),
    TEXT,
)
ARGUMENTS = st.one_of(
    st.lists(WORDS, max_size=5),
    st.tuples(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=4)).map(lambda parts: [parts[0], *parts[1]]),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to work in: one small dataset, configurations good and bad, no network that was trained; no connection,
    and training that only says that it began."""

    def refuse(*args, **options):
        raise urllib.error.URLError("no route")

    folder = tmp_path_factory.mktemp("place")
    make_files(folder / "Data" / "Mine", [f"{label}/{number}.png" for label in "ab" for number in range(8)])
    for name, content in {
        "config.yml": "dataset: Mine\ndatasets: {Mine: {hyperparameters: {verbose: False}}, Gone: {}}",
        "bad.yml": "seed: [",
        "other.yml": "backbone_model: 7\nseeed: 1",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.hub, "urlopen", refuse)
        patch.setattr(training, "train", lambda config: pytest.fail("not in this test"))
        patch.setattr(command_line, "_train", lambda options, config: print(f"training on {config.dataset}"))
        yield folder


@settings(max_examples=150, deadline=None, derandomize=True)
@given(arguments=ARGUMENTS)
@example(arguments=[])
@example(arguments=["audit"])
@example(arguments=["audit", "Gone"])
@example(arguments=["download", "Flowers"])
@example(arguments=["train", "--config", "other.yml"])
@example(arguments=["train", "--config", "\udce9.yml"])
@example(arguments=["train", "\udce9"])
@example(arguments=["audit", "--config", "Data"])
@example(arguments=["audit", "--config"])
@example(arguments=["report", "x" * 5000])  # longer than a file's name may be
@example(arguments=["search", "build", "x" * 5000])
def test_any_arguments_give_a_result_or_a_line_and_exit_code_2(place, arguments):
    code, out, err = run(arguments)
    if code == 0:
        assert out.strip()
        return
    lines = err.splitlines()
    assert code == 2, (code, out, err)
    # Several wrong keys of one file are a line each.
    assert len(lines) == 1 or all(line.startswith("other.yml: ") for line in lines), err
