"""README.md is the first page: MkDocs sees only docs/, so files of the root are added to it."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md")
}


def on_files(files, config):
    """Add the pages of the root, and files of benchmarks/ and examples/ that a page links to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    text = "".join(page.read_text() for page in pages)
    for name in set(re.findall(r"\]\((?:\.\./)?((?:benchmarks|examples)/[\w/.-]+)\)", text)):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the repository as links of the site, where docs/ is the root."""
    markdown = re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
    return markdown.replace("](README.md", "](index.md")
