"""How token classifiers are trained and asked: what is not decayed, and that nothing is random any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmark import token_classification
from benchmark.classification import most_likely_classes
from benchmark.recipe import train_recipe
from tests.benchmark.test_token_classification import EVALUATIONS, Made, of_the_label


@pytest.mark.parametrize("name", EVALUATIONS)
def test_predictions_are_made_without_dropped_paths_and_vectors_are_not_decayed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    undecayed: list[set[str]] = []

    def trained(*given: Any, **options: Any) -> Any:
        undecayed.append(options["undecayed"])
        result = train_recipe(*given, **options)
        options["objective"].train()  # evaluating is the stage's own business
        return result

    def asked(classifier: nn.Module, *given: Any, **options: Any) -> Any:
        modes.extend(module.training for module in classifier.modules())
        return most_likely_classes(classifier, *given, **options)

    monkeypatch.setattr(token_classification, "train_recipe", trained)
    monkeypatch.setattr(token_classification, "most_likely_classes", asked)
    token_classification.run(Made.of(tmp_path, of_the_label).context(name))
    assert modes
    assert not any(modes)
    (names,) = undecayed
    assert {"cls_token", "pos_embed"} <= names if "vit" in name else names == set()
