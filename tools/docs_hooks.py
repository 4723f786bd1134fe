"""What mkdocs is told beyond its settings: pages from elsewhere, links to them, the command line.

The documents of the repository are written to be read where they lie, so they link to files above
``docs/``. Those that a reader of the site needs become pages; a link to any other file of the
repository becomes its path, since the site does not hold it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Files of the repository that are pages of the site.
PAGES = {
    "rust/core/src/format/README.md": "format.md",
    "rust/core/README.md": "rust.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/data/README.md": "sample.md",
}
CLI_PAGE = "cli_reference.md"
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and the one made of the command line itself."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text, source)))
    files.append(File.generated(config, CLI_PAGE, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to the repository's files to their pages."""
    if page.file.src_uri in PAGES.values():
        return markdown  # done when they were read
    return _moved(markdown, posixpath.join("docs", page.file.src_uri))


def _moved(markdown: str, source: str) -> str:
    """The links of a file of the repository, as the site needs them."""
    here = posixpath.dirname(source)
    depth = posixpath.dirname(posixpath.relpath(source, "docs")) if here.startswith("docs") else ""

    def target(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, link))
        if path in PAGES:
            return f"[{text}]({posixpath.relpath(PAGES[path], depth or '.')}{anchor})"
        if path == "README.md":
            return f"[{text}]({posixpath.relpath('index.md', depth or '.')})"
        if path.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(path[5:], depth or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # strict mode will tell
        return text if path in text else f"{text} (`{path}`)"

    return _LINK.sub(target, markdown)


def command_line() -> str:
    """Every subcommand with its arguments and options, from the program itself."""
    import typer

    from sparse_retrieval.cli._app import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line reference",
        "",
        "Made from the program, as `sparse-retrieval SUBCOMMAND --help` prints it. What the "
        "subcommands have in common is in [the command line](cli.md).",
    ]
    for name, command in group.commands.items():
        usage = [f"sparse-retrieval {name}"]
        rows = []
        for parameter in command.params:
            record = (parameter.opts, getattr(parameter, "help", None) or "")
            if parameter.param_type_name == "argument":
                usage.append(parameter.metavar or parameter.name.upper())
                rows.append((f"`{parameter.metavar or parameter.name.upper()}`", record[1], ""))
                continue
            default = parameter.default
            shown = (
                "" if default in (None, False, ()) or callable(default) else f"`{_plain(default)}`"
            )
            if parameter.required:
                usage.append(f"{parameter.opts[0]} ...")
                shown = "required"
            rows.append((", ".join(f"`{option}`" for option in parameter.opts), record[1], shown))
        parts += ["", f"## {name}", "", (command.help or "").strip(), ""]
        parts += ["```", f"{' '.join(usage)} [OPTIONS]", "```", ""]
        parts += ["| | | default |", "|---|---|---|"]
        parts += [f"| {option} | {_cell(about)} | {shown} |" for option, about, shown in rows]
    return "\n".join(parts) + "\n"


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
