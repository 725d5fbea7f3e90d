"""Makes environment.yml from requirements.txt: `python -m docs.make_environment`.

conda brings Python and pip only, and pip the same packages as without conda: so there is one OpenMP runtime, and
nothing that only one system has. The list is written out, as micromamba does not follow `-r requirements.txt`.
"""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "environment.yml"
HEAD = """\
name: pytorch_siamese
channels:
  - conda-forge
dependencies:
  - python=3.12
  - pip
  - pip:
"""


def page() -> str:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return HEAD + "".join(f"      - {line}\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="ascii", newline="\n")
