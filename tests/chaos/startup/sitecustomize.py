"""Found by every Python process of a chaos campaign, through PYTHONPATH: see tests/chaos/moments.py."""

import importlib.util
import sys
from pathlib import Path

_path = Path(__file__).parent.parent / "moments.py"
_found = importlib.util.spec_from_file_location("fair_mim_moments", _path)
assert _found is not None
assert _found.loader is not None
_moments = importlib.util.module_from_spec(_found)
sys.modules["fair_mim_moments"] = _moments
_found.loader.exec_module(_moments)
_moments.watch_as_asked()
