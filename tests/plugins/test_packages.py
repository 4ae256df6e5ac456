"""Installed packages bring plug-ins by their entry points; a broken one is told of where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import methods.trunk
from benchmark.cli import main
from benchmark.plugin_packages import forget_packages, load_packages
from benchmark.plugins import plugin_of
from methods import broken_methods, list_methods, method_spec
from protocols import list_protocols, load_protocol
from protocols.errors import HarnessError, ProtocolViolation
from protocols.load import FOLDER
from tests.plugins.plugin_texts import METHOD, TOKENIZER, changed
from tokenizers import tokenizer_spec

Install = Callable[..., Path]
OWN = (FOLDER / "mini.yaml").read_text().replace("name: mini\n", "name: mine\n", 1)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts files and entry points, group by group, where pip would put a distribution's."""

    def installed(name: str, files: dict[str, str], **groups: str) -> Path:
        site = tmp_path / name
        for file, text in files.items():
            path = site / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        info = site / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        sections = [f"[fair_mim.{group}]\n{lines}\n" for group, lines in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(sections))
        monkeypatch.syspath_prepend(site)
        forget_packages()
        return site

    yield installed
    forget_packages()
    methods._BROKEN.clear()


def test_a_package_brings_methods_tokenizers_and_protocols(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(
        "fair-ring",
        {
            "fair_ring/__init__.py": "",
            "fair_ring/ring.py": changed(METHOD, ("from methods.mim import", "from fair_ring.shared import")),
            "fair_ring/shared.py": "from methods.mim import MaskedImageModelling\n",
            "fair_ring/bright.py": changed(
                TOKENIZER, ("TOKENIZERS = (\n", "SPEC = (\n"), ("    ),\n)\n", "    )\n)\n")
            ),
            "fair_ring/mine.yaml": OWN,
        },
        methods="ring-mim = fair_ring.ring:METHODS",
        tokenizers="brightness = fair_ring.bright:SPEC",
        protocols="mine = fair_ring",
    )  # fmt: skip
    load_packages()
    spec = method_spec("ring-mim")
    assert spec.origin == "package fair-ring 1.2"
    assert plugin_of(spec.origin) == "fair-ring 1.2"
    assert [path.name for path in spec.sources] == ["__init__.py", "ring.py", "shared.py"]
    assert "mim.py" in spec.files
    assert tokenizer_spec("brightness").origin == "package fair-ring 1.2"
    assert "mine" in list_protocols()
    assert load_protocol("mine").argument == "mine"
    assert main(["list", "methods"]) == 0
    assert "package fair-ring 1.2" in capsys.readouterr().out


def test_a_broken_package_breaks_nothing_but_what_it_promised(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(
        "fair-broken",
        {
            "broken_one.py": "import nothing_of_that_name\n",
            "broken_two.py": METHOD.replace("ring-mim", "mim"),
        },
        methods="ring-mim = broken_one:METHODS\ntaken = broken_two:METHODS\nlost = no_such_module:METHODS",
    )
    assert main(["list", "methods"]) == 0
    shown = capsys.readouterr().out
    assert "cannot be used" in shown
    assert "No module named 'nothing_of_that_name'" in " ".join(shown.split())
    assert main(["plan", "--protocol", "mini", "--methods", "mim"]) == 0
    capsys.readouterr()
    assert main(["plan", "--protocol", "mini", "--methods", "ring-mim"]) == 2
    said = capsys.readouterr().err
    assert "'ring-mim' of package fair-broken 1.2 cannot be used: " in said
    assert "broken_one.py:1: cannot be imported: ModuleNotFoundError" in said
    assert broken_methods().keys() == {"ring-mim", "taken", "lost"}
    with pytest.raises(HarnessError, match=r"comes from two places: built in, and package fair-broken 1\.2"):
        method_spec("taken")
    with pytest.raises(HarnessError, match="no module 'no_such_module'"):
        method_spec("lost")


def test_a_package_that_would_touch_the_harness_is_not_run_and_one_that_did_ends_the_command(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(methods.trunk, "build_trunk", methods.trunk.build_trunk)
    shown = METHOD + "\nimport methods.trunk\nmethods.trunk.build_trunk = None\n"
    install("fair-shown", {"shown_one.py": shown}, methods="ring-mim = shown_one:METHODS")
    load_packages()
    assert "ring-mim" not in list_methods()
    with pytest.raises(HarnessError, match=r"shown_one\.py:38: methods\.trunk\.build_trunk is changed"):
        method_spec("ring-mim")
    assert callable(methods.trunk.build_trunk)
    hidden = METHOD + "\nimport methods.trunk\n[setattr][0](methods.trunk, 'build_trunk', None)\n"
    install("fair-hidden", {"hidden_one.py": hidden}, methods="other = hidden_one:METHODS")
    with pytest.raises(
        ProtocolViolation, match=r"hidden_one\.py: importing .* changed methods\.trunk\.build_trunk"
    ):
        load_packages()
