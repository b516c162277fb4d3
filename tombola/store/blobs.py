"""Blobs: bytes by their own SHA-256, checked on every read."""

from __future__ import annotations

import hashlib

from tombola.errors import StoreError
from tombola.store.files import Files

BLOBS = "blobs"


def address_of(data: bytes) -> str:
    """A blob's address: the SHA-256 of its bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def name_of(address: str) -> str:
    """The file of a blob; the first two digits are a sub-folder, so that no folder grows too long."""
    return f"{BLOBS}/{address[:2]}/{address}"


class Blobs:
    """Content-addressed bytes. What is read has been checked against its address."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def put(self, data: bytes) -> str:
        """Keep the bytes and return their address.

        A blob that is there and sound is only dated anew, so that a collection of garbage leaves it alone; one that
        is damaged is written again. An object store can't date a file anew and a check costs as much as an upload, so
        there it is always written.
        """
        address = address_of(data)
        name = name_of(address)
        sound = self._files.folder is not None and self._files.read(name) == data
        if not (sound and self._files.renew(name)):
            self._files.write(name, data)
        return address

    def get(self, address: str) -> bytes:
        """The bytes of an address; StoreError where they are missing or damaged."""
        data = self._files.read(name_of(address))
        if data is None:
            raise StoreError(f"blob {address} is missing from the store {self._files.where}")
        if address_of(data) != address:
            raise StoreError(
                f"blob {address} in the store {self._files.where} is damaged: "
                f"its {len(data)} bytes hash to something else"
            )
        return data

    def has(self, address: str) -> bool:
        """Whether there is a file for the address; its content is not checked."""
        return self._files.facts(name_of(address)) is not None
