"""A folder of the user's own images, one subfolder a class; `data.fingerprint` says what it must hold."""

from __future__ import annotations

from harness.data.images import ImageFolder

FOLDER = ImageFolder(own_split=True)
