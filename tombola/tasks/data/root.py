"""Where data sets live: the data root and the configuration file that may name it."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import platformdirs

from tombola.errors import InputError

HOW_TO_SET = "--data-root, TOMBOLA_DATA or data_root in the configuration file"


def data_root(flag: str | Path | None = None) -> Path:
    """The folder that holds the data sets, in torchvision's layout; it need not exist yet.

    The first of these that is given: ``flag``; the environment variable ``TOMBOLA_DATA``; ``data_root`` in the
    configuration file, relative to that file; ``data`` in the user's cache folder.
    """
    if flag is not None and str(flag):
        return _folder(Path(flag), "--data-root")
    if set_by_environment := os.environ.get("TOMBOLA_DATA"):
        return _folder(Path(set_by_environment), "TOMBOLA_DATA")
    config = configuration()
    if "data_root" in config:
        value, path = config["data_root"], configuration_path()
        if not isinstance(value, str) or not value:
            raise InputError(f"data_root in {path} must be a folder's name as a string, but got {value!r}")
        return _folder(path.parent / Path(value).expanduser(), f"data_root in {path}")
    return platformdirs.user_cache_path("tombola") / "data"


def configuration_path() -> Path:
    """The configuration file: ``TOMBOLA_CONFIG``, or ``config.toml`` in the user's configuration folder."""
    named = os.environ.get("TOMBOLA_CONFIG")
    path = Path(named).expanduser() if named else platformdirs.user_config_path("tombola") / "config.toml"
    return path.absolute()


def configuration() -> dict[str, Any]:
    """What the configuration file says; nothing where there is none, unless ``TOMBOLA_CONFIG`` names it."""
    path = configuration_path()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if os.environ.get("TOMBOLA_CONFIG"):
            raise InputError(f"TOMBOLA_CONFIG names {path}, which doesn't exist") from None
        return {}
    except OSError as error:
        raise InputError(f"the configuration file {path} can't be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"the configuration file {path} must be TOML in UTF-8, but: {error}") from error


def _folder(path: Path, origin: str) -> Path:
    path = path.expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"the data root must be a folder, but {path} (from {origin}) is a file")
    return path
