"""A folder of the user's own images, one subfolder per class; `data.fingerprint` is checked against the files."""

from __future__ import annotations

from harness.data.images import ImageFolder

FOLDER = ImageFolder(own_split=True)
