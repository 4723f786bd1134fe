"""A page for people: browse an index, its atoms and its neighbours, in a browser.

Part of the HTTP service (extra ``serve``), started by ``sparse-retrieval explore``. ``atlas``
works out what is shown, ``routes`` hands it over, ``static`` holds the page: plain HTML, CSS and
JavaScript, nothing from elsewhere.
"""

from __future__ import annotations

from sparse_retrieval.explore.routes import add_pages

__all__ = ["add_pages"]
