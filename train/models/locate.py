"""Where models lie: local folders, the hub's cache, the hub; what a folder holds. Loads no weights and no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from prefkit.errors import UserError

RUN_FILE = "run.yaml"
SUMMARY = "summary.json"
ADAPTER_FILE = "adapter_config.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")
WEIGHTS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def locate(path: str) -> Path:
    """The local folder of a model: itself, or the hub's snapshot of that name; UserError when there is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", ADAPTER_FILE, RUN_FILE)):
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:3]) or "nothing"
            fix = "give a folder with config.json and *.safetensors, or a run folder"
            raise UserError(f"no model is in this folder, it holds {inside} …", path, fix)
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        fix = f"{_similar(folder)}give a model folder, a run folder, or a name on the hub"
        raise UserError("model folder not found", path, fix)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(path, allow_patterns=WEIGHTS, local_files_only=True))
        if _is_whole(cached):
            return cached
    except OSError:
        pass  # not in the cache: ask the hub
    _reach(constants.ENDPOINT, path)
    try:
        return Path(snapshot_download(path, allow_patterns=WEIGHTS))
    except GatedRepoError as e:
        raise UserError(
            "the model is gated", path, f"accept its terms at {constants.ENDPOINT}/{path}, then hf auth login"
        ) from e
    except RepositoryNotFoundError as e:
        raise UserError("no such folder, and no such model on the hub", path, "check the name") from e
    except (HfHubHTTPError, OSError) as e:
        raise UserError(f"cannot download the model: {e}", path, "try again, or give a local folder") from e


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has its configuration and all weights that its index names: a download may have been cut."""
    configured = is_adapter(folder) or (folder / "config.json").is_file()
    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    return configured and any(folder.glob("*.safetensors")) and all((folder / name).is_file() for name in named)


def _similar(folder: Path) -> str:
    """The name most like a folder's beside it, as a question; empty where none is."""
    siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    near = get_close_matches(folder.name, siblings, n=1)
    return f"did you mean {folder.parent / near[0]}? " if near else ""


def _reach(endpoint: str, path: str) -> None:
    """Fail in seconds instead of after the hub client's retries."""
    fix = f"{_similar(Path(path))}give a local folder, or connect to the network"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise UserError("no such folder, not in the cache, and HF_HUB_OFFLINE is set", path, fix)
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError as e:
        raise UserError(f"no such folder, not in the cache, and {url.hostname} cannot be reached", path, fix) from e


def locate_finished(path: str) -> Path:
    """The same, and UserError for a run that goes on."""
    folder = locate(path)
    if (folder / RUN_FILE).is_file() and not (folder / SUMMARY).is_file():
        raise UserError("this run is not finished", path, "give its training command again, or name a checkpoint of it")
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / ADAPTER_FILE).is_file()


def run_config(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration of one of our runs, also for its checkpoints; None for foreign folders."""
    home = folder.resolve().parent if CHECKPOINT.fullmatch(folder.resolve().name) else folder
    file = home / RUN_FILE
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError("the run's configuration is not YAML", file, "train again, or restore it") from e
    if not isinstance(config, dict):
        raise UserError("the run's configuration is damaged", file, "train again, or restore it")
    return config


def weights_digest(path: str) -> str:
    """Names what a model computes: sha256 of its weights and configuration, an adapter's base included.

    The hub's revision for a model from there. Where the folder lies does not matter.
    """
    folder = locate(path)
    digest = hashlib.sha256()
    if not Path(path).expanduser().is_dir():
        if not is_adapter(folder):
            return folder.name
        digest.update(folder.name.encode())
    else:
        for file in [*sorted(folder.glob("*.safetensors")), folder / "config.json"]:
            if file.is_file():
                digest.update(_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns))
    if is_adapter(folder):
        adapter = adapter_config(folder)
        with as_base_of(path):
            base = weights_digest(adapter.pop("base_model_name_or_path"))
        digest.update(json.dumps([adapter, base], sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache
def _file_digest(file: Path, size: int, changed: int) -> bytes:
    """sha256 of a file, read once as long as it is the same."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").digest()


@contextmanager
def as_base_of(path: str) -> Iterator[None]:
    """Inside, what is wrong with a model is said of the adapter whose base it is."""
    try:
        yield
    except UserError as e:
        fix = f"restore the base, or set base_model_name_or_path in its {ADAPTER_FILE}"
        raise UserError(f"the adapter's base cannot be loaded: {e.what} ({e.where})", path, fix) from e


def adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration, its base named; UserError where it is damaged or names none."""
    file = folder / ADAPTER_FILE
    try:
        config = json.loads(file.read_text("utf-8"))
        base = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as e:
        raise UserError("the adapter's configuration is damaged", file, "restore the file") from e
    if not base:
        raise UserError("the adapter names no base model", folder, f"set base_model_name_or_path in its {ADAPTER_FILE}")
    return config
