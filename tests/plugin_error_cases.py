"""Errors about plug-ins, as tests/error_cases.py builds them into cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.error_settings import Setting, file_of
from tests.plugins.plugin_texts import DATA_SET, METHOD, TOKENIZER, changed

LIST = "list methods --plugin mine.py"


def files(**texts: str) -> Setting:
    """Files by name, `__` for a dot and `_in_` for a folder's slash."""

    @contextmanager
    def setting(folder: Path) -> Iterator[None]:
        for name, text in texts.items():
            path = folder / name.replace("_in_", "/").replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        yield

    return setting


def method(*changes: tuple[str, str]) -> Setting:
    """`mine.py`: a plug-in of a method with one fault."""
    return file_of("mine.py", changed(METHOD, *changes))


def inside(line: str) -> tuple[str, str]:
    """A line of its own at the top of the module, after its imports."""
    return ("\n\nclass RingMim", f"\n{line}\n\n\nclass RingMim")


def built(lines: str) -> tuple[str, str]:
    """A constructor that ends in `lines`."""
    start = "    def __init__(self, *, trunk, codebook_size, mask_count):\n"
    call = "        super().__init__(trunk=trunk, codebook_size=codebook_size, mask_count=mask_count)\n"
    body = "".join(f"        {line}\n" for line in lines.splitlines())
    return ("    def draw(self,", f"{start}{call}{body}\n    def draw(self,")


def _case(title: str, setting: Setting, given: str, where: str, remedy: str, **more: Any) -> dict[str, Any]:
    return {
        "command": LIST,
        "title": title,
        "setting": setting,
        "given": given,
        "where": where,
        "remedy": remedy,
    } | more


PLUGIN_CASES: tuple[dict[str, Any], ...] = (
    _case("a plug-in that is not there", files(), "--plugin mine.py", "no such file or folder",
          "give other words before it"),
    _case("a word after --plugin that is none of it", method(), "--plugin methods", "no such file",
          "give other words before it", command="list --plugin mine.py methods"),
    _case("a protocol as a plug-in", file_of("mine.yaml", "name: mine"), "mine.yaml", "--plugin",
          "give --protocol mine.yaml", command="list methods --plugin mine.yaml"),
    _case("a file that is no Python", file_of("mine.py", "def f(:\n"), "not valid Python", "mine.py:1",
          "invalid syntax"),
    _case("a plug-in that cannot be imported", method(inside("import nothing_of_that_name")),
          "ModuleNotFoundError", "mine.py:10", "install it in this environment"),
    _case("a plug-in that fails", method(inside("SHARE = 1 / 0")), "ZeroDivisionError", "mine.py:10",
          "division"),
    _case("a single file that imports its neighbours", method(inside("from .other import thing")),
          "relative import", "mine.py:10", "give --plugin the folder"),
    _case("a neighbour under its bare name",
          files(mine__py=changed(METHOD, inside("import rings")), rings__py=""),
          "No module named 'rings'", "mine.py:10", "write from . import rings; give --plugin the folder"),
    _case("a plug-in that brings nothing", method(("METHODS =", "METHOD =")),
          "METHODS, TOKENIZERS, DATA_SETS", "mine.py", "says in one of them what it brings"),
    _case("a folder without a plug-in", files(mine_in_notes__txt="none"), "--plugin mine", "this folder",
          "no *.py", command="list methods --plugin mine"),
    _case("a constant without its comma", method(("    ),\n)\n", "    )\n)\n")),
          "a MethodSpec", "mine.py:22", "METHODS = (MethodSpec(...),)"),
    _case("hyperparameters without their comma",
          method(("            ),\n        ),\n", "            )\n        ),\n")),
          "hyperparameters must be a tuple, got a Hyperparameter", "mine.py:22", "mind the comma"),
    _case("a number of patches that is no whole number", method(("type=int, low=1,", "type=float, low=0.1,")),
          "mask_count", "mine.py:30", "give it type=int, or another name"),
    _case("a bound that is no number", method(("low=1,", "low='1',")), "mask_count", "mine.py:30",
          "low and high must be numbers"),
    _case("a method that is stated twice", method(("\n    ),\n)\n", "\n    ),\n) * 2\n")),
          "'ring-mim' twice", "mine.py:22", "METHODS"),
    _case("a value that does not follow", method(("trunk.patches", "trunk.patchez")),
          "no attribute 'patchez'", "mine.py:30", "follows of mask_count",
          command="plan --protocol mini --methods ring-mim --tokenizers k-pixel --plugin mine.py"),
    _case("costs of another method", method(("work=masked_work", "work=lambda trunk, given: given['heads']")),
          "KeyError: 'heads'", "mine.py:33", "work failed",
          command="plan --protocol mini --methods ring-mim --tokenizers k-pixel --plugin mine.py"),
    _case("a name that is none", method(('name="ring-mim"', 'name="Ring MIM"')), "'Ring MIM'", "mine.py:22",
          "must be lower-case letters"),
    _case("a name that is taken", method(('name="ring-mim"', 'name="mim"')), "method 'mim'",
          "built in, and plug-in mine.py (mine.py)", "rename one of them"),
    _case("a name that two plug-ins bring", files(a__py=METHOD, b__py=METHOD), "method 'ring-mim'",
          "plug-in a.py (a.py), and plug-in b.py (b.py)", "rename one of them",
          command="list methods --plugin a.py b.py"),
    _case("a class that is not there", method(('target="RingMim"', 'target="RingMin"')), "'RingMin'",
          "mine.py:22", "known: RingMim"),
    _case("a class that is no method", method(('class RingMim(MaskedImageModelling)', "class RingMim"),),
          "RingMim is no class derived from methods.base.Method", "mine.py:11", "methods.base.Method"),
    _case("a class that leaves out a part of the contract",
          method(("from methods.mim import MaskedImageModelling", "from methods.base import Method"),
                 ("RingMim(MaskedImageModelling)", "RingMim(Method)")),
          "does not define count_targets, forward, load_reference", "mine.py:11", "method ring-mim"),
    _case("a hyperparameter that the constructor does not take",
          method(('name="mask_count"', 'name="ring_width"')), "takes no ring_width", "mine.py:11",
          "is called with trunk, codebook_size, ring_width"),
    _case("a method that does not say what it costs", method(("        work=masked_work,\n", "")),
          "work is missing", "mine.py:22", "methods.specs.masked_work"),
    _case("a hyperparameter that the protocol fixes",
          method(('name="mask_count"', 'name="peak_lr"')),
          "'peak_lr'", "mine.py:30", "pretraining.peak_lr", exit_code=3),
    _case("a default out of its range",
          method(("low=1, follows=lambda trunk: trunk.patches // 2", "low=1, default=0")),
          "mask_count", "mine.py:30", "at least 1"),
    _case("a trunk of its own", method(built("self.trunk = torch.nn.Identity()")), "self.trunk is changed",
          "mine.py:14", "keep your own parts beside it", exit_code=3),
    _case("a frozen trunk", method(built("self.trunk.requires_grad_(False)")), "self.trunk.requires_grad_()",
          "mine.py:14", "belongs to the protocol", exit_code=3),
    _case("a part of the harness that is replaced",
          method(inside("MaskedImageModelling.forward = None")), "MaskedImageModelling.forward is changed",
          "mine.py:10", "derive a class", exit_code=3),
    _case("a part of torch that is replaced", method(inside('setattr(torch.nn.Linear, "forward", None)')),
          "torch.nn.Linear.forward", "mine.py:10", "derive a class", exit_code=3),
    _case("the random numbers of the process", method(inside("torch.manual_seed(0)")), "torch.manual_seed()",
          "mine.py:10", "a torch.Generator of your own", exit_code=3),
    _case("a method of a plug-in that is not given", method(), "'ring-mim'", "method of protocol mini",
          "one that a plug-in brings needs --plugin", command="plan --protocol mini --methods ring-mim"),
    _case("a tokenizer without its class",
          file_of("mine.py", changed(TOKENIZER, ("class Brightness(", "class Bright("))),
          "'Brightness'", "mine.py:33", "known: Bright"),
    _case("a data set without its classes",
          file_of("mine.py", changed(DATA_SET, ('("lying", "standing")', "()"))),
          "classes must be a tuple of texts", "mine.py:13", "data set stripes"),
    _case("a remedy with braces of its own",
          file_of("mine.py", changed(DATA_SET, ("{root}/stripes", "{root}/{name}"))),
          "remedy may name {root} alone", "mine.py:13", "write {{ and }}"),
)  # fmt: skip
