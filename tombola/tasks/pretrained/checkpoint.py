"""Pre-trained nets in Transformers' own format: found, checked and loaded, and written again.

A checkpoint is a folder, or the name of one on the Hugging Face hub. Its weights must be safetensors: pickles can run
code and are never read, nor is code that comes with a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from tombola.errors import DataError, InputError
from tombola.extras import TRANSFORMERS

_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
)
"""What of a checkpoint is read, and makes its content."""
_HUB_NAME = r"[\w][\w.-]*(/[\w][\w.-]*)?"

Stamp = tuple[tuple[str, int, int], ...]


def transformers() -> Any:
    """The library. ``InputError`` where it isn't installed."""
    with TRANSFORMERS.needed_by("a net of Transformers"):
        import transformers as library
    return library


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's notes and bars: that a head is drawn anew, say, is what is wanted here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained net as it was found: by its content, whatever becomes of the folder afterwards."""

    name: str
    """The folder's absolute path, or the name on the hub."""
    folder: Path
    digest: str
    """SHA-256 of its files: configuration, weights, tokenizer."""
    stamp: Stamp

    @property
    def unchanged(self) -> bool:
        """Whether its files have the size and the time of change that they had when it was found."""
        return _stamp(self.folder) == self.stamp

    @cached_property
    def config(self) -> Any:
        """Its configuration. Attention is computed step by step ("eager"): that gives the same bits every time, on a
        GPU too, and can be differentiated twice."""
        with self._reading("configuration"), quietly():
            return transformers().AutoConfig.from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="eager",
                num_labels=2,
            )

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer. ``InputError`` where it has none, or one that can't pad."""
        with self._reading("tokenizer"), quietly():
            found = transformers().AutoTokenizer.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        if found.pad_token_id is None or not len(found):
            raise InputError(f"a checkpoint's tokenizer must have a padding token, but that of {self.name} has none")
        return found

    @cached_property
    def has_pooler(self) -> bool:
        """Whether the weights of a pooler are among its own."""
        return any("pooler" in name.split(".") for name in self._names())

    def skeleton(self, kind: str) -> nn.Module:
        """A net of the architecture without values, to look at its names. ``kind`` is that of ``load``."""
        with torch.device("meta"):
            return self.drawn(kind)

    def drawn(self, kind: str) -> nn.Module:
        """A net of the architecture with all weights drawn by the library's rule, from torch's global state."""
        with self._reading(f"architecture as {kind}"), quietly():
            net: nn.Module = _kind(kind).from_config(self.config, trust_remote_code=False)
        return net

    def load(self, kind: str) -> nn.Module:
        """The net with the checkpoint's values and a head: float32, in training mode.

        ``kind`` is ``CLASSIFIER`` (two classes; its head is always drawn anew) or ``MASKED_WORDS`` (its head is the
        checkpoint's where that has one). What is drawn comes from torch's global state, by BERT's rule: weights normal
        with the configuration's ``initializer_range``, biases 0. So is a pooler that the checkpoint doesn't have.

        Raises ``InputError`` where the checkpoint lacks anything else, or has changed since it was found.
        """
        if not self.unchanged:
            raise InputError(
                f"a checkpoint must stay as it is while it is used, but {self.folder} has changed: start the command "
                "again for what is there now"
            )
        with self._reading(f"weights as {kind}"), quietly(), torch.random.fork_rng():
            net, about = _kind(kind).from_pretrained(
                self.folder,
                config=self.config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head of another task; of the body they are told below
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
        missing = {*about["missing_keys"], *(entry[0] for entry in about["mismatched_keys"])}
        lacking = sorted(name for name in missing if in_body(net, name) and "pooler" not in name.split("."))
        if lacking:
            raise InputError(
                f"a checkpoint must have every weight of the net's body, but {self.name} lacks {len(lacking)}, "
                f"{lacking[0]!r} first: its weights are those of another architecture than its configuration says"
            )
        fresh = {n for n, _ in net.named_parameters() if not in_body(net, n)} if kind == CLASSIFIER else set()
        _draw(net, fresh | missing)
        trained: nn.Module = net.train()
        return trained

    def _names(self) -> list[str]:
        """The names of its tensors."""
        names: list[str] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as opened:
                    names += opened.keys()
            except (SafetensorError, OSError) as error:
                raise DataError(f"{path} is damaged: {error}; replace it by a good copy") from error
        return names

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        transformers()
        try:
            yield
        except Exception as error:  # whatever the library makes of a folder that isn't what it should be
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"Transformers can't read the {what} of the checkpoint {self.name}: {reason}") from error


CLASSIFIER, MASKED_WORDS = "sequence classification", "masked language modelling"


def in_body(net: nn.Module, name: str) -> bool:
    """Whether a name is one of the net's body, which every head of the architecture has in common."""
    return name.startswith(f"{net.base_model_prefix}.")


def checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a folder or, where there is no such folder, of a name on the hub.

    From the hub's cache where it is there, else downloaded. Raises ``InputError`` for a folder that isn't in
    Transformers' format with safetensors, ``DataError`` where there is neither folder nor such a name on the hub.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        folder = path = path.resolve()
        name = str(path)
        if "@" in name:
            raise InputError(f"a checkpoint's path may not hold an @, which names of tasks use, but is {name}: move it")
    elif re.fullmatch(_HUB_NAME, name):
        folder = _from_hub(name)
    else:
        raise InputError(f"a checkpoint is a folder or the name of one on the Hugging Face hub, but {name!r} is none")
    _check_format(folder, name)
    digest = hashlib.sha256()
    for file in _files(folder):
        with file.open("rb") as stream:
            digest.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return Checkpoint(name, folder, digest.hexdigest(), _stamp(folder))


def save(net: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write a net of Transformers and its tokenizer as a checkpoint: ``from_pretrained`` reads it.

    Files of the same names are replaced, each at once; others are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made, quietly():
        net.save_pretrained(made)  # type: ignore[operator]
        tokenizer.save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            os.replace(file, folder / file.name)


def _kind(kind: str) -> Any:
    library = transformers()
    return library.AutoModelForSequenceClassification if kind == CLASSIFIER else library.AutoModelForMaskedLM


def _draw(net: nn.Module, names: set[str]) -> None:
    """Draw these parameters by BERT's rule, in the net's order."""
    std = float(getattr(net.config, "initializer_range", 0.02))
    for prefix, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if (f"{prefix}.{name}" if prefix else name) not in names:
                continue
            with torch.no_grad():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, std)
                else:  # the scale of a normalisation, or a bias
                    parameter.fill_(float(name == "weight"))


def _from_hub(name: str) -> Path:
    transformers()  # its absence is said before anything else
    from huggingface_hub import snapshot_download

    for cached in (True, False):
        try:
            found = Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=cached))
        except Exception as error:  # no network, no such name, no access: each library has errors of its own
            if cached:
                continue
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"there is no folder {name!r}, and no such checkpoint comes from the Hugging Face hub: {reason}\n"
                "Name a folder in Transformers' format, or a checkpoint that can be downloaded"
            ) from error
        if not cached or (found / "config.json").is_file():
            return found
    raise AssertionError


def _check_format(folder: Path, name: str) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"a checkpoint must be in Transformers' format, but {name} holds no config.json")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"a checkpoint's weights must be safetensors, but {name} has only {pickles[0]}, a pickle, which can run "
            "code and is never read: load it where you trust it and write it with save_pretrained(FOLDER)"
        )
    raise InputError(f"a checkpoint's weights must be safetensors, but {name} has no model.safetensors")


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})


def _stamp(folder: Path) -> Stamp:
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files(folder))
