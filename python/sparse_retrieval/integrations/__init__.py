"""Neighbours: one module a library, each imported by its own name and behind its own extra.

Nothing is imported here, so that no neighbour costs anything until it is asked for:
``from sparse_retrieval.integrations.sklearn import SparseCoding``. A module says at its head
which extra it needs; without it the import fails with the command that installs it.
"""
