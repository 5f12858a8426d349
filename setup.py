"""The contents of the wheel: the package `jaxs1`, and no other top-level name.

`convert/`, `kernels/` and `configs/` are next to `jaxs1/` in the checkout. A wheel has them inside
of it, as `jaxs1.convert`, `jaxs1.kernels` and `jaxs1/configs`: Hugging Face publishes a package
named `kernels`, which transformers looks for. Imports are rewritten while the wheel is built; an
editable installation uses the checkout unchanged.
"""

import ast
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

IMPORT = re.compile(r"^(\s*(?:from|import) )(?=(?:convert|kernels)[ .])")
#: Commands in help texts, and modules' names in quotes.
COMMAND = re.compile(r"(-m )(?=(?:convert|kernels)\.)")
QUOTED = re.compile(r"""(["'])((?:convert|kernels)(?:\.\w+)+)\1""")


def relocate(source: str) -> str:
    """Python source with the moved packages under their installed names."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1] = IMPORT.sub(r"\1jaxs1.", lines[node.lineno - 1])
    return QUOTED.sub(r"\1jaxs1.\2\1", COMMAND.sub(r"\1jaxs1.", "".join(lines)))


class BuildPy(build_py):
    """Copies modules and rewrites their imports."""

    def build_module(self, module, module_file, package):
        """Copy one module; returns its new path and whether it was copied."""
        built = super().build_module(module, module_file, package)
        path = Path(built[0])
        path.write_text(relocate(path.read_text()))
        return built


if "editable_wheel" in sys.argv:
    packages, package_dir = find_packages(include=["jaxs1*", "convert*", "kernels*"]), {}
else:
    moved = find_packages(include=["convert*", "kernels*"])
    packages = find_packages(include=["jaxs1*"]) + [f"jaxs1.{name}" for name in moved]
    packages.append("jaxs1.configs")
    package_dir = {f"jaxs1.{name}": name for name in ("convert", "kernels", "configs")}

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "jaxs1": ["py.typed"],
        "jaxs1.curation": ["prompts/*.txt"],
        "jaxs1.serving": ["playground/*"],
        "jaxs1.configs": ["*.yaml", "models/*.json", "launch/*"],
    },
    cmdclass={"build_py": BuildPy},
)
