"""How files and folders become methods, tokenizers, data sets and protocols, and how they are told apart."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.cli import main
from benchmark.plugins import load_plugins, loaded_plugins, plugin_of, unload_plugins
from methods import list_methods, method_spec, register_method, unregister_method
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError
from protocols.load import FOLDER
from tests.plugins.conftest import Load
from tests.plugins.plugin_texts import DATA_SET, METHOD, TOKENIZER, changed
from tokenizers import list_tokenizers, tokenizer_spec

SIBLING = changed(
    METHOD,
    ("from methods.mim import MaskedImageModelling", "from ._shared import Base as MaskedImageModelling"),
)
SHARED = "import methods.beit\nfrom methods.mim import MaskedImageModelling as Base\n"


def own_protocol(name: str = "mine") -> str:
    return (FOLDER / "mini.yaml").read_text().replace("name: mini\n", f"name: {name}\n", 1)


def test_a_file_brings_a_method_under_its_own_name_and_origin(load: Load) -> None:
    path = load(METHOD)
    spec = method_spec("Ring-MIM")
    assert list_methods()[-1] == "ring-mim"
    assert spec.origin == "plug-in mine.py"
    assert plugin_of(spec.origin) == "mine.py"
    assert plugin_of(method_spec("mim").origin) == ""
    assert spec.sources == (path,)
    assert "mim.py" in spec.files
    assert loaded_plugins() == (str(path),)
    unload_plugins()
    assert "ring-mim" not in list_methods()
    assert not [name for name in sys.modules if name.startswith("plugin_mine")]


def test_the_source_digest_is_over_the_file_and_what_it_builds_on(load: Load, tmp_path: Path) -> None:
    load(METHOD)
    first = method_spec("ring-mim").source_digest
    load(METHOD + "\n# a remark\n")
    assert method_spec("ring-mim").source_digest != first
    load(METHOD)
    assert method_spec("ring-mim").source_digest == first
    # Where the file lies is no part of it.
    unload_plugins()
    (tmp_path / "elsewhere").mkdir()
    load(METHOD, "elsewhere/mine.py")
    assert method_spec("ring-mim").source_digest == first
    assert {"mim.py", "base.py", "patterns.py", "trunk.py"} <= set(method_spec("ring-mim").files)
    assert not {"specs.py", "__init__.py", "reference.py", "cae.py"} & set(method_spec("ring-mim").files)


def test_an_edit_counts_even_within_the_same_second_and_size(load: Load) -> None:
    path = load(METHOD)
    at = path.stat().st_mtime
    assert method_spec("ring-mim").title == "RingMIM"
    path.write_text(changed(METHOD, ('title="RingMIM"', 'title="RingBIM"')))
    os.utime(path, (at, at))
    load_plugins([path], packages=False)
    assert method_spec("ring-mim").title == "RingBIM"
    assert not list(path.parent.rglob("__pycache__"))


def test_a_file_that_is_loaded_again_unchanged_stays_as_it_is(load: Load) -> None:
    path = load(METHOD)
    before = method_spec("ring-mim")
    load_plugins([path, str(path)], packages=False)
    assert method_spec("ring-mim") is before


def test_a_folder_is_a_package_whose_files_import_one_another(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    for name, text in {
        "ring.py": SIBLING, "_shared.py": SHARED, "brightness.py": TOKENIZER, "stripes.py": DATA_SET,
        "mine.yaml": own_protocol(),
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    load_plugins([folder], packages=False)
    method, tokenizer = method_spec("ring-mim"), tokenizer_spec("brightness")
    assert method.origin == "plug-in pack/ring.py"
    assert [path.name for path in method.sources] == ["_shared.py", "ring.py"]
    assert {"mim.py", "beit.py"} <= set(method.files), "what its neighbour builds on counts too"
    assert [Path(name).name for name in tokenizer.sources if Path(name).is_absolute()] == ["brightness.py"]
    assert {"tokenizers/base.py", "protocols/geometry.py"} <= set(tokenizer.sources)
    assert load_protocol("mine").name == "mine"
    assert load_protocol("Mine").argument == str(folder / "mine.yaml")
    before = method.source_digest
    (folder / "_shared.py").write_text(SHARED + "# edited\n")
    assert method_spec("ring-mim").source_digest != before
    unload_plugins()
    assert "mine" not in list_protocols()
    assert "brightness" not in list_tokenizers()


def test_what_is_hidden_in_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    for name, text in {
        "ring.py": METHOD,
        ".venv/lib/other.py": "import torch\ntorch.manual_seed(0)\n",
    }.items():
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_text(text)
    load_plugins([tmp_path / "pack"], packages=False)
    assert method_spec("ring-mim").origin == "plug-in pack/ring.py"


def test_a_package_with_an_init_file_is_loaded_once(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .ring import METHODS as OF_RING\nCOUNT = [1]\n")
    (folder / "ring.py").write_text(METHOD)
    load_plugins([folder], packages=False)
    assert method_spec("ring-mim").origin == "plug-in pack/ring.py"
    assert method_spec("ring-mim").target.endswith(".ring:RingMim")


def test_a_name_is_taken_once_and_both_origins_are_named(load: Load, tmp_path: Path) -> None:
    load(METHOD)
    with pytest.raises(HarnessError, match=r"plug-in mine\.py \(.*mine\.py\), and plug-in b\.py \(.*b\.py\)"):
        load(METHOD, "b.py")
    assert method_spec("ring-mim").origin == "plug-in mine.py"
    with pytest.raises(HarnessError, match="comes from two places: built in, and here"):
        register_method(changed_spec("mim"))
    unregister_method("mim")
    assert "mim" in list_methods(), "what is built in stays"
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "mini.yaml").write_text((FOLDER / "mini.yaml").read_text())
    with pytest.raises(HarnessError, match=r"protocol 'mini' comes from two places: built in"):
        load_plugins([tmp_path / "pack"], packages=False)
    with pytest.raises(HarnessError, match="tokenizer 'k-pixel' comes from two places: built in"):
        load(changed(TOKENIZER, ('name="brightness"', 'name="k-pixel"')), "c.py")
    with pytest.raises(HarnessError, match="data set 'digits' comes from two places: built in"):
        load(changed(DATA_SET, ('name="stripes"', 'name="digits"')), "d.py")


def changed_spec(name: str):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(method_spec(name), origin="here")


def test_nothing_remains_of_a_plug_in_that_fails_half_way(load: Load) -> None:
    twice = METHOD.replace("    ),\n)\n", "    ),\n    MethodSpec(name='mim', title='x', target='RingMim', "
                           "paper='x', work=masked_work),\n)\n")  # fmt: skip
    with pytest.raises(HarnessError, match=r"takes no mask_count|takes no|method 'mim'"):
        load(twice)
    assert "ring-mim" not in list_methods()
    assert loaded_plugins() == ()
    assert not [name for name in sys.modules if name.startswith("plugin_mine")]


def test_one_file_in_two_spellings_is_one(load: Load, tmp_path: Path) -> None:
    path = load(METHOD)
    (tmp_path / "other").mkdir()
    load_plugins([tmp_path / "other" / ".." / path.name], packages=False)
    assert loaded_plugins() == (str(path),)


def test_what_a_plug_in_prints_is_no_part_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        changed(
            DATA_SET,
            ("def read(folder, split):\n", "print('here')\n\ndef read(folder, split):\n    print(1)\n"),
        )
    )
    (tmp_path / "stripes").mkdir()
    for split in ("train", "test"):
        np.savez(
            tmp_path / "stripes" / f"{split}.npz",
            images=np.zeros((4, 8, 8), dtype=np.uint8),
            labels=np.arange(4) % 2,
        )
    words = [
        "check",
        "stripes",
        "--json",
        "--plugin",
        str(tmp_path / "mine.py"),
        "--data-root",
        str(tmp_path),
    ]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["counts"]["FAILED"] == 0
    assert {"here", "1"} <= set(shown.err.splitlines())


def test_list_shows_who_brings_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pack"
    folder.mkdir()
    for name, text in {
        "r.py": METHOD,
        "b.py": TOKENIZER,
        "s.py": DATA_SET,
        "mine.yaml": own_protocol(),
    }.items():
        (folder / name).write_text(text)
    shown = {}
    for kind in ("methods", "tokenizers", "data-sets", "protocols"):
        assert main(["list", kind, "--plugin", str(folder)]) == 0
        shown[kind] = {
            line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[0] != " "
        }
    assert "plug-in pack/r.py" in shown["methods"]["ring-mim"]
    assert "built in" in shown["methods"]["mim"]
    assert "plug-in pack/b.py" in shown["tokenizers"]["brightness"]
    assert "plug-in pack/s.py" in shown["data-sets"]["stripes"]
    assert "plug-in pack" in shown["protocols"]["mine"]
    assert loaded_plugins() == (), "a command leaves no plug-in behind"
    assert main(["list", "methods"]) == 0
    assert "ring-mim" not in capsys.readouterr().out


def test_data_files_that_a_specification_names_are_part_of_its_code(load: Load, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1,2\n")
    named = changed(
        METHOD, ("        work=masked_work,", f"        work=masked_work, sources=({str(table)!r},),")
    )
    load(named)
    before = method_spec("ring-mim").source_digest
    table.write_text("1,3\n")
    assert method_spec("ring-mim").source_digest != before
    beside = named.replace(repr(str(table)), "'table.csv'")
    load(beside)
    assert table in method_spec("ring-mim").sources
    with pytest.raises(HarnessError, match=r"mine\.py:22: method ring-mim: sources names 'tables\.csv'"):
        load(beside.replace("table.csv", "tables.csv"))
