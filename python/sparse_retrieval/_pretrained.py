"""Folders and the hub, as models and dictionaries have them in common. Imports neither of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_retrieval.integrations.hub import Measurement


class Pretrained:
    """What writes itself into a folder, and pushes that to the Hugging Face hub."""

    __slots__ = ()

    def _write_to(self, directory: str | os.PathLike[str]) -> None:
        """Write numbers and configuration into a folder, made if absent."""
        raise NotImplementedError

    def save_pretrained(
        self, directory: str | os.PathLike[str], *, measured: Sequence[Measurement] | None = None
    ) -> None:
        """Write the numbers and ``config.json`` into a folder, made if absent.

        The numbers are in ``model.safetensors`` or ``dictionary.safetensors``. Each file is
        written beside its target, synced and renamed, so a crash leaves the old file or the new
        one. Should it leave one of each, ``from_pretrained`` says so.

        Parameters
        ----------
        directory : path-like
        measured : sequence of Measurement, optional
            What `sparse_retrieval.integrations.hub.measure` found: a model card, ``README.md``,
            is written too then. Empty: a card without a table.

        Raises
        ------
        ImportError
            If safetensors is not installed; the message names the extra.
        OSError
            If the folder cannot be written to.
        """
        self._write_to(directory)
        if measured is not None:
            from sparse_retrieval.integrations import hub

            hub.write_card(directory, hub.model_card(self, measured))

    def push_to_hub(
        self, repo_id: str, *, measured: Sequence[Measurement] = (), **options: Any
    ) -> str:
        """Push to the Hugging Face hub, with a model card, in one commit.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made if absent.
        measured : sequence of Measurement, optional
            What `sparse_retrieval.integrations.hub.measure` found, for the card's table.
        **options
            private, token, branch, create_pr, commit_message: as in
            ``PyTorchModelHubMixin.push_to_hub``.

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        ImportError
            If huggingface_hub or safetensors is not installed.
        huggingface_hub.errors.HfHubHTTPError
            If the hub refuses.
        """
        from sparse_retrieval.integrations import hub

        return hub.push(self, repo_id, measured=measured, **options)
