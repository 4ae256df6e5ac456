"""The house's rules: who may import whom, who loads no torch, how long a file may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("protocols", "methods", "tokenizers", "leaderboard", "benchmark")
ALLOWED = {
    "protocols": {"protocols"},
    "leaderboard": {"protocols", "leaderboard"},
    "methods": {"protocols", "methods"},
    "tokenizers": {"protocols", "tokenizers"},
    "benchmark": set(ROOMS),
}
LIGHT = {
    "protocols": {"pydantic", "yaml"},
    "leaderboard": {
        "jinja2",
        "matplotlib",
        "numpy",
        "pandas",
        "pydantic",
        "rich",
        "scipy",
        "markupsafe",
        "statsmodels",
        "yaml",
    },
}
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, by its full dotted name."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            assert node.module
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    modules = imported(path)
    roots = {module.split(".")[0] for module in modules}
    assert roots & set(ROOMS) <= ALLOWED[room]
    if room in LIGHT:
        outside = roots - set(ROOMS) - set(sys.stdlib_module_names)
        assert outside <= LIGHT[room], outside - LIGHT[room]
    if room == "benchmark":
        of_leaderboard = {module for module in modules if module.split(".")[0] == "leaderboard"}
        # record.py is the record's schema, staleness.py reads records alone; one command shows boards.
        shared = {"leaderboard.record", "leaderboard.staleness", "leaderboard.origins"}
        if path.name in ("bundle.py", "merge.py", "merging.py"):
            shared |= {"leaderboard.bundle", "leaderboard.bundle_cells", "leaderboard.bundle_writer"}
        if path.name == "gallery.py":
            # Sheets of codes are made from images, which the leaderboard does not see, and drawn by it.
            shared |= {"leaderboard.gallery", "leaderboard.sheets"}
        if path.name == "patterns_figure.py":
            # What objectives see is found out with torch, and drawn where all figures are.
            shared |= {"leaderboard.figure_patterns", "leaderboard.pattern_sheets", "leaderboard.sections"}
        if path.name in ("imported.py", "model_card.py"):
            # What a record says of weights from elsewhere, and of its evaluation: names, and no board.
            shared |= {"leaderboard.imported", "leaderboard.lineage"}
        if path.name == "model_card.py":
            # Two write cards: what both say of a record is said in one place, and that reads records alone.
            shared |= {"leaderboard.card_parts"}
        assert path.name == "board.py" or of_leaderboard <= shared
    if path.name != "engine.py":
        assert "mmengine" not in roots
    assert "transformers" not in roots


def test_the_entry_script_only_calls_the_command_line_and_hears_signals_before() -> None:
    assert imported(ROOT / "run_benchmark.py") == {"sys", "benchmark.cli", "benchmark.stopping"}


LIGHT_COMMANDS = (
    "--help",
    "list methods",
    "list tokenizers",
    "list views",
    "completion bash",
    "explain fair300",
    "plan --protocol mini --json",
    "plan --protocol fair300 --methods all",
    "status --protocol mini --work-dir none",
    "data fashion-mnist-12k --decode 5",
    "--protocol fair300 --work-dir none",
    "report --protocol mini --work-dir none",
    "gallery --protocol mini --work-dir none",
    "merge none.tar --work-dir none",
)


@pytest.fixture(scope="module")
def heavy_after() -> dict[str, list[str]]:
    """The heavy libraries that are loaded after each of the light commands, one after another in a process.

    What is loaded stays loaded: who loaded it is the first that has it.
    """
    code = (
        "import json, sys; sys.path.insert(0, '.')\n"
        "from benchmark.cli import main\n"
        "heavy, found = {'torch', 'timm', 'mmengine', 'faiss', 'torchvision'}, {}\n"
        "for words in sys.argv[1:]:\n"
        "    try: main(words.split())\n"
        "    except SystemExit: pass\n"
        "    found[words] = sorted(heavy & set(sys.modules))\n"
        "import leaderboard.report\n"
        "found['the board'] = sorted(heavy & set(sys.modules))\n"
        "print('\\n' + json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *LIGHT_COMMANDS],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("command", [*LIGHT_COMMANDS, "the board"])
def test_light_commands_never_load_torch(command: str, heavy_after: dict[str, list[str]]) -> None:
    assert heavy_after[command] == []


def test_the_libraries_work_with_this_repository_first_on_the_path() -> None:
    """`tokenizers` is also a package of another ecosystem: the two must not be mistaken."""
    import open_clip
    import timm
    from open_clip.modified_resnet import ModifiedResNet

    import tokenizers

    assert Path(tokenizers.__file__).parent == ROOT / "tokenizers"
    open_clip.get_tokenizer("RN50")(["a photograph"])
    timm.create_model("vit_tiny_patch16_224", num_classes=0)
    ModifiedResNet(layers=[1, 1, 1, 1], output_dim=16, heads=2, image_size=32, width=8)


def test_no_file_is_longer_than_400_lines() -> None:
    files = [*SOURCES, ROOT / "run_benchmark.py", *sorted((ROOT / "tests").rglob("*.py"))]
    long = {str(path.relative_to(ROOT)): lines for path in files
            if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400}  # fmt: skip
    assert not long
