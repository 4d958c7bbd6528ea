"""ImageNet (ILSVRC 2012; Russakovsky et al. 2015), sorted into one folder a class in train/ and val/."""

from __future__ import annotations

from harness.data.images import ImageFolder

IMAGENET = ImageFolder(own_split=False)
