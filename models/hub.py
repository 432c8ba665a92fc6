"""Fetching a model from the Hugging Face hub, at one commit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from models.configs import CheckpointError


def fetch(
    repository: str, revision: str | None, choose: Callable[[list[str]], Iterable[str]], folder: Path, advice: str
) -> str:
    """The files that `choose` picks, into the folder. HF_TOKEN opens gated models.

    Returns:
        The commit.
    Raises:
        CheckpointError: the hub does not answer, or does not have it; `advice` says what else one can do.
    """
    from huggingface_hub import HfApi, hf_hub_download

    try:
        info = HfApi().model_info(repository, revision=revision)
        assert info.sha is not None
        for kept in choose([file.rfilename for file in info.siblings or []]):
            hf_hub_download(repository, kept, revision=info.sha, local_dir=folder)
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library the hub's client was built with
        raise CheckpointError(f"{repository} could not be fetched from the hub ({error}); {advice}") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return info.sha
