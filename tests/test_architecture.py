"""Data flows in one direction: ARCHITECTURE.md says which package may import which."""

import ast
import graphlib

from tests.conftest import ROOT

#: Package -> the packages that it may import from; the same table as in ARCHITECTURE.md.
MAY_IMPORT = {
    "api": {
        "commands",
        "rl",
        "distillation",
        "evaluation",
        "tasks",
        "decoding",
        "convert",
        "training",
        "model",
        "data",
        "config",
    },
    "commands": {
        "planning",
        "rl",
        "distillation",
        "curation",
        "inference",
        "serving",
        "evaluation",
        "tasks",
        "decoding",
        "convert",
        "training",
        "model",
        "data",
        "config",
    },
    "planning": {"rl", "decoding", "training", "model", "data", "config"},
    "rl": {"evaluation", "tasks", "decoding", "training", "model", "data", "config"},
    "serving": {"decoding", "data", "config"},
    "distillation": {
        "inference",
        "evaluation",
        "tasks",
        "decoding",
        "convert",
        "data",
        "config",
    },
    "curation": {"inference", "tasks", "decoding", "convert", "data", "config"},
    "inference": {"decoding", "config"},
    "evaluation": {"tasks", "decoding", "data", "config"},
    "tasks": {"data", "config"},
    "decoding": {"convert", "model", "data", "config"},
    "training": {"model", "data", "config"},
    "convert": {"model", "data", "config"},
    "model": {"kernels", "config"},
    "data": {"config"},
    "config": set(),
    "kernels": {"config"},
}
#: Single modules of jaxs1 that are no commands: the public interface, and what everything may use.
MODULES = {
    "jaxs1": "api",
    "jaxs1.__main__": "api",
    "jaxs1.llm": "api",
    "jaxs1.config": "config",
    "jaxs1.config_errors": "config",
    "jaxs1.devices": "config",
    "jaxs1.processes": "config",
    "jaxs1.storage": "config",
}
OURS = ("jaxs1", "convert", "kernels")


def package(module):
    """The package of a module: jaxs1.model.transformer -> model, jaxs1.train -> commands."""
    parts = module.split(".")
    if parts[0] != "jaxs1":
        return parts[0]
    if module in MODULES:
        return MODULES[module]
    return parts[1] if (ROOT / "jaxs1" / parts[1]).is_dir() else "commands"


def imports(path):
    """Names of our own modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            deeper = ROOT / node.module.replace(".", "/")
            names = [
                f"{node.module}.{a.name}" if (deeper / f"{a.name}.py").exists() else node.module
                for a in node.names
            ]
        yield from (name for name in names if name.split(".")[0] in OURS)


def files():
    return [p for folder in OURS for p in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_go_one_way():
    wrong = []
    for path in files():
        here = package(module_name(path))
        for name in imports(path):
            there = package(name)
            if there not in MAY_IMPORT[here] | {here}:
                wrong.append(f"{path.relative_to(ROOT)} ({here}) imports {name} ({there})")
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    """Neither among packages nor among modules, imports inside of functions included."""
    modules = {module_name(path): set(imports(path)) for path in files()}
    graphlib.TopologicalSorter(modules).prepare()
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_the_rule_is_the_one_in_the_document():
    document = (ROOT / "ARCHITECTURE.md").read_text()
    for name, allowed in MAY_IMPORT.items():
        line = next(x for x in document.splitlines() if x.startswith(f"| {name} |"))
        cell = line.split("|")[2]
        assert {x.strip() for x in cell.split(",") if x.strip() != "nothing"} == allowed, line


def test_every_file_is_in_the_document_and_short():
    document = (ROOT / "ARCHITECTURE.md").read_text()
    for path in files():
        if path.name != "__init__.py":
            assert f"{path.name}" in document, f"{path} is not in ARCHITECTURE.md"
        assert len(path.read_text().splitlines()) <= 400, f"{path} is too long to read at a sitting"


def test_kernels_package_does_not_pass_for_the_hub_package():
    """transformers probes for a package called kernels; ours must not answer, or loading breaks."""
    import kernels

    assert not hasattr(kernels, "__version__")
    assert kernels.__file__.startswith(str(ROOT))
    from transformers import Qwen2Config, Qwen2ForCausalLM

    Qwen2ForCausalLM(Qwen2Config(vocab_size=8, hidden_size=8, num_hidden_layers=1,
                                 num_attention_heads=1, num_key_value_heads=1,
                                 intermediate_size=8))  # fmt: skip
