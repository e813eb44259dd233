"""MkDocs hook that shows the notebooks as pages, with the outputs that they hold."""

import json

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import markdown  # MkDocs lets a hook import the modules beside it


class NotebookFile(File):
    """A notebook, which MkDocs treats as it treats a Markdown file."""

    def is_documentation_page(self) -> bool:
        """Whether the file becomes a page."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Let the notebooks become pages."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(NotebookFile(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the Markdown of a notebook; None for other pages."""
    return markdown(json.loads(page.file.content_string)) if isinstance(page.file, NotebookFile) else None
