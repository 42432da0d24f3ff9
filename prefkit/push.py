"""A data set on the Hugging Face Hub: the folder as it stands, the manifest in the same commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit.errors import UserError
from prefkit.shards import MANIFEST, Manifest, verify


def push(data: Path, repo: str, *, private: bool = True, message: str = "prefkit push") -> str:
    """Upload every file of the manifest and nothing else; returns the address of the commit.

    Errors: `UserError` where the data set is not whole, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    transport: tuple[Any, ...] = HfHubHTTPError.__bases__  # HTTPError of whichever httpx the Hub's library has, OSError
    noted = Manifest.read(data)
    if problems := verify(data):
        raise UserError(f"the data set is not whole: {problems[0]}", data, "prefkit verify tells all")
    files = [*noted.files, MANIFEST]
    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, repo_type="dataset", folder_path=data, allow_patterns=files, commit_message=message
        )
    except (*transport, HFValidationError, LocalTokenNotFoundError) as e:
        reason = str(e).strip().partition("\n")[0]
        raise UserError(
            f"the Hub refused: {reason}",
            repo,
            "is the Hub to be reached, the name OWNER/NAME, and are you logged in (hf auth login)?",
        ) from None
    return str(commit)
