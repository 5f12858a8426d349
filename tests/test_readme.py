"""What README.md and the recipes name exists."""

import re

from jaxs1.data.records import FORMATS
from tests.conftest import ROOT


def test_files_and_modules_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"(?:configs|benchmarks|tests)/[\w./]+\.(?:yaml|py|json)", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for target in re.findall(r"^    make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for name in FORMATS:
        assert f"| `{name}` |" in text
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (ROOT / link).exists(), link
