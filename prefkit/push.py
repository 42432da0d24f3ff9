"""A data set on the Hugging Face Hub: the folder as it stands, the manifest in the same commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefkit.errors import UserError
from prefkit.shards import MANIFEST, Manifest, verify


def push(data: Path, repo: str, *, private: bool = True, message: str = "prefkit push") -> str:
    """Upload every file of the manifest and nothing else; returns the address of the commit.

    Errors: `UserError` where the data set is not whole, or the Hub refuses or cannot be reached.
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
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError) as e:
        fix = "is the name OWNER/NAME, and are you logged in (hf auth login)?"
        raise UserError(f"the Hub refused: {_first_line(e)}", repo, fix) from None
    except transport as e:
        raise UserError(f"the Hub cannot be reached: {_first_line(e)}", repo, "connect to the network") from None
    return str(commit)


def _first_line(e: Exception) -> str:
    return str(e).strip().partition("\n")[0]
