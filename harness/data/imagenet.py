"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015), one folder per class in train/ and in val/."""

from __future__ import annotations

from harness.data.images import ImageFolder

IMAGENET = ImageFolder(own_split=False, as_published=True)
