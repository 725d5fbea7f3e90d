"""docs/troubleshooting.md: every error of a user says what to do, or is explained there; and nothing there is stale."""

import re
from pathlib import Path

import pytest
from messages import GAP, kinds, made, strings

from utils.config import PLAIN

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
KEYS = [key.strip("`") for heading in HEADINGS for key in re.findall(r"``.+?``|`.+?`", heading)]

# Messages of other programs. The first seven are those that users of the paper's implementation reported.
FOREIGN = {
    "OMP: Error #15 … libiomp5md.dll already initialized",
    "Downloaded bytes did not match Content-Length",
    "HTTP 429",
    "HTTP 403",
    "UnicodeDecodeError: 'gbk' codec …",
    "CUDA out of memory",
    "ResolvePackageNotFound",
    "No module named venv",
    "ensurepip is not available",
    "operator torchvision::nms does not exist",
    "DecompressionBombWarning",
    "use_libuv was requested but PyTorch was build without libuv support",
    "IProgress not found",
    "Glyph … missing from font(s)",
}
NAMES = {".heic", "pytest --nbval"}  # in headings, but not messages

# A message says what to do if one of its clauses begins with one of these.
ADVICE = re.compile(
    r"(add|change|check|choose|copy|correct|delete|download|enlarge|free|give|lower|make|mend|move|name|put|reduce|"
    r"rename|replace|run|save|set|should|start|train|use|wait|write)\b"
)
# Where no wording is in the source: what is passed on was made by an error that is listed itself, or by pydantic.
PASSED_ON = {"utils/comparison.py", "utils/config.py", "utils/images/duplicates.py"}
MESSAGES = list(made(kinds()))


def says_what_to_do(message):
    clauses = re.split(r"[;,:(]\s*(?:or |but |then )?|\bor ", message)
    return any(ADVICE.match(clause) for clause in clauses)


def is_in_page(message, keys=KEYS):
    return any(fits(key, message) for key in keys)


def fits(key, message):
    """Whether a heading's words occur in a message in their order, with anything in the gaps of both."""
    return re.search(".*".join(re.escape(part.strip()) for part in key.split(GAP)), message, re.DOTALL)


def test_the_messages_are_found():
    """Those of one error of each kind, with their conditions, gaps and lists, read by hand from the sources."""
    found = {message for _, message in MESSAGES}
    assert (
        len(found) > 50
        and {
            f"{GAP}: not there yet; run 01_Train_Siamese_model.ipynb first",  # f-string
            "device: 'cuda' was asked for, but cuda: False forbids it",  # + and a condition
            f"{GAP}: a link that leads to itself; delete it",  # returned by another function
            # The first of a list of lines, assigned before.
            f"{GAP}: {GAP} of {GAP} images cannot be read; mend or delete them, "
            "or set on_bad_image: skip to go on without them",
            f"unknown public set {GAP}; choose one of {GAP}",
        }
        <= found
    )


@pytest.mark.parametrize(
    "message, says",
    [
        ("x: broken; delete it", True),
        ("x: broken, or use another", True),
        ("x: should be a number", True),
        ("x: broken", False),
        ("x: the name is broken", False),  # a noun
        ("x: there is no address", False),  # "add", but as a part of a word
    ],
)
def test_what_counts_as_saying_what_to_do(message, says):
    assert says_what_to_do(message) == says


def test_every_message_says_what_to_do_or_is_explained():
    unexplained = [
        f"{place} {message}"
        for place, message in MESSAGES
        if re.sub(r"\W", "", message) and not says_what_to_do(message) and not is_in_page(message)
    ]
    assert not unexplained, "add what to do, or a section in docs/troubleshooting.md"


def test_what_has_no_wording_of_its_own_passes_on_other_messages():
    assert {place.split(":")[0] for place, message in MESSAGES if not re.sub(r"\W", "", message)} == PASSED_ON


def test_values_that_settings_refuse_are_said_with_what_they_should_be():
    """They follow the name of the file and the key."""
    refusals = [*PLAIN.values(), *(text for place, text in made({"ValueError"}) if "settings.py" in place)]
    assert len(refusals) > 10
    told = [text for text in refusals if says_what_to_do(text) or is_in_page(text)]
    assert [text for text in refusals if text not in told] == []


def test_every_message_on_the_page_is_one_that_there_is():
    known = [text for text in strings() | {message for _, message in MESSAGES} if re.search(r"\w", text)]
    stale = [key for key in KEYS if key not in FOREIGN | NAMES and not any(fits(key, text) for text in known)]
    assert not stale and FOREIGN | NAMES <= set(KEYS)


def test_every_section_says_something():
    bodies = re.split(r"^#{2,3} .+$", PAGE, flags=re.MULTILINE)[1:]
    titles = re.findall(r"^(#{2,3}) .+$", PAGE, flags=re.MULTILINE)
    assert all(body.strip() for body, level in zip(bodies, titles) if level == "###")


def test_the_readme_leads_there():
    assert "](docs/troubleshooting.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
