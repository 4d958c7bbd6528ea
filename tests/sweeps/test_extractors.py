"""`extractors = [...]`: one evaluation each, of the same samples."""

from __future__ import annotations

import pytest

from harness.errors import InputError
from harness.spec.evaluation import Evaluation
from sweeps.protocols import evaluations


def test_extractors_are_a_list_of_evaluations() -> None:
    found = evaluations({"samples": 10, "extractors": ["digits-cnn", "inception-v3-compat"]}, "evaluation 1")
    assert found == [Evaluation(samples=10, extractor=name) for name in ("digits-cnn", "inception-v3-compat")]
    for wrong in ({"extractors": "digits-cnn"}, {"extractors": ["digits-cnn"], "extractor": "digits-cnn"}):
        with pytest.raises(InputError, match="a list of extractors, and no `extractor` beside"):
            evaluations(wrong, "evaluation 1")
    with pytest.raises(InputError, match="unknown extractor 'x'"):
        evaluations({"extractors": ["x"]}, "evaluation 1")
