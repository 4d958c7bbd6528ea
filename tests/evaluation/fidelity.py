"""The classifiers as torch-fidelity takes extractors: its own metrics of the same features are a test's oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from harness.evaluation.classifier import ARCHITECTURES, build, infer
from harness.spec.evaluation import EXTRACTORS

#: The two layers, under the names that torch-fidelity asks for.
FEATURES, LOGITS = "64", "logits"


class ForTorchFidelity(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity has no types
    """What torch-fidelity calls: features for the distances, logits for the inception score."""

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)
        self.network = build(name)
        self.size = EXTRACTORS.facts(name).size

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return FEATURES, LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Layer that `metric` (isc, fid, kid, prc) takes."""
        return LOGITS if metric == "isc" else FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        """Compilation would change the numbers."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Never asked for, see `can_be_compiled`."""
        raise NotImplementedError("the classifiers are not compiled")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Layers asked for, in that order, of uint8 (N, 3, H, W) images; grey ones come as three equal channels.

        Raises:
            ValueError: another type, another size, or channels that differ where the data set is grey.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"{self.name} takes uint8 images, got {images.dtype}")
        if images.ndim != 4 or images.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"{self.name} takes (N, 3, {self.size}, {self.size}), got {tuple(images.shape)}")
        grey = images[:, :1]
        if not torch.equal(images, grey.expand_as(images)):
            raise ValueError(f"{self.name} takes grey images: three equal channels")
        features, logits = infer(self.network, grey)
        layers = {FEATURES: features, LOGITS: logits}
        return tuple(layers[layer] for layer in self.features_list)


for _name in ARCHITECTURES:
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # torch-fidelity refuses a second registration
        register_feature_extractor(_name, ForTorchFidelity)
