"""Sections of tests/error_cases.py whose cases stand in files of their own, by title."""

from __future__ import annotations

from typing import Any

from tests.bundle_error_cases import BUNDLE_CASES
from tests.campaign_error_cases import CAMPAIGN_CASES
from tests.check_error_cases import CHECK_CASES
from tests.cluster_error_cases import CLASSIFIER_CASES, CLUSTER_CASES
from tests.compare_error_cases import COMPARE_CASES
from tests.convert_error_cases import CONVERT_CASES
from tests.method_error_cases import METHOD_CASES
from tests.pack_error_cases import PACK_CASES
from tests.pattern_error_cases import PATTERN_CASES
from tests.plugin_error_cases import PLUGIN_CASES
from tests.sharing_error_cases import SHARING_CASES

FURTHER_CASES: dict[str, tuple[dict[str, Any], ...]] = {
    "Packed images": PACK_CASES,
    "Pictures of objectives": PATTERN_CASES,
    "Clusters": CLUSTER_CASES,
    "Published classifiers": CLASSIFIER_CASES,
    "Bundles": BUNDLE_CASES,
    "Weights and plug-ins in bundles, metric back-ends": SHARING_CASES,
    "Weights that travel": CONVERT_CASES,
    "Checks of adapters": CHECK_CASES,
    "Comparing two rows": COMPARE_CASES,
    "Values of further methods": METHOD_CASES,
    "Plug-ins": PLUGIN_CASES,
    "Records that were edited": CAMPAIGN_CASES,
}
