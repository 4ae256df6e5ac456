"""`check` of a method finds what is broken, and by the right name; methods that are whole pass in all."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import methods
from benchmark import conformance_cost, conformance_training
from benchmark.cli import main
from benchmark.conformance import Finding, examined
from benchmark.conformance_contract import CONTRACT
from benchmark.conformance_cost import COSTS
from benchmark.conformance_leaks import LEAKS
from benchmark.conformance_method import MethodUnderTest
from benchmark.conformance_training import TRAINING
from benchmark.stopping import Stopped
from methods.specs import MethodSpec, Work, masked_work
from protocols.hyperparameters import Hyperparameter
from protocols.schema import TrunkSpec
from tests.conformance import broken_methods

TRUNK = TrunkSpec(image_size=16, patch_size=4, width=16, depth=2, heads=2, mlp_ratio=2.0)
CHECKS = {check.name: check for check in (*CONTRACT, *LEAKS, *TRAINING, *COSTS)}
MASK_COUNT = Hyperparameter(name="mask_count", type=int, low=1, default=8, source="half of them")
SPEC = MethodSpec(
    name="broken",
    title="Broken",
    target="",
    paper="none",
    hyperparameters=(MASK_COUNT,),
    work=masked_work,
    sources=(Path(broken_methods.__file__),),
)
# Which check finds it, and as what; nothing else in that check fails.
BROKEN = {
    "SeedsItself": ("class", {"initialisation"}),
    "DrawsBeforeTheTrunk": ("equal trunk", {"equal trunk"}),
    "ExportsAnother": ("equal trunk", {"exported backbone", "loads in timm"}),
    "DecaysPositions": ("equal trunk", {"weight decay"}),
    "DrawsNumbers": ("draw", {"pattern"}),
    "DrawsALine": ("draw", {"pattern"}),
    "DrawsGlobally": ("draw", {"draw takes no random number", "draw is pure"}),
    "DrawsByPlace": ("draw", {"draw is pure"}),
    "DrawsTheSame": ("draw", {"draw varies"}),
    "ReturnsItsLoss": ("output", {"output"}),
    "Leaves": ("output", {"output"}),
    "Detaches": ("output", {"loss"}),
    "HasALossForEachImage": ("output", {"loss"}),
    "ChangesItsWeights": ("output", {"forward repeats"}),
    "CountsWrong": ("output", {"shapes"}),
    "HasAnotherHead": ("output", {"targets"}),
    "DrawsInForward": ("output", {"forward repeats"}),
    "ChangesItsImages": ("output", {"forward repeats"}),
    "KeepsItsLogits": ("output", {"without logits"}),
    "TakesAnything": ("refusals", {"refusals"}),
    "Peeks": ("own content", {"own pixels"}),
    "ReadsTokens": ("own content", {"own token"}),
    "MixesImages": ("own content", {"images stand alone", "own pixels"}),
    "IsBlind": ("own content", {"sees the image"}),
    "HasAnIdlePart": ("gradients", {"gradients"}),
    "SumsOverImages": ("parts of a batch", {"parts of a batch"}),
    "RecomputesNothing": ("recomputed blocks", {"recomputed blocks"}),
    "RoundsItsLoss": ("bf16", {"bf16"}),
    "NeverDropsPaths": ("drop path", {"drop path"}),
    "ForgetsItsState": ("saved weights", {"saved weights"}),
    "LearnsNothing": ("learns", {"learns"}),
}


def subject(
    patch: pytest.MonkeyPatch, name: str, *, resolved: dict[str, Any] | None = None, **changes: Any
) -> MethodUnderTest:
    """The broken method called `name`, known until the test ends."""
    spec = replace(SPEC, target=f"{broken_methods.__name__}:{name}", **changes)
    patch.setitem(methods._TABLE, spec.name, spec)
    return MethodUnderTest(spec, TRUNK, {"mask_count": 8} if resolved is None else resolved, 20)


def failures(found: list[Finding]) -> set[str]:
    return {one.what for one in found if one.status == "FAILED"}


def test_every_broken_method_is_tried() -> None:
    classes = {name for name, one in vars(broken_methods).items() if isinstance(one, type)}
    own = {name for name in classes if getattr(broken_methods, name).__module__ == broken_methods.__name__}
    assert own == {*BROKEN, "Base", "Fails", "AsksWrongly", "MixesItsTargets"}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check, expected = BROKEN[name]
    found = list(examined([CHECKS[check]], subject(monkeypatch, name)))
    assert failures(found) == expected
    assert all(one.remedy for one in found if one.status == "FAILED")


def test_what_is_whole_passes_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(examined([*CHECKS.values()], subject(monkeypatch, "Base")))
    assert not failures(found)
    assert len(found) > 25


def test_a_loss_that_is_not_that_of_its_logits_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(examined(TRAINING[:1], subject(monkeypatch, "MixesItsTargets")))
    assert [one.status for one in found] == ["info"]
    assert "further terms" in found[0].found


def test_an_error_of_the_adapter_is_a_finding_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(examined([*CONTRACT, *LEAKS], subject(monkeypatch, "Fails")))
    failed, stopped = found[-2:]
    lines = Path(broken_methods.__file__).read_text().splitlines()
    line = 1 + lines.index('        raise RuntimeError("no such thing as a loss")')
    assert failed.found == f"RuntimeError at broken_methods.py, line {line}: no such thing as a loss"
    assert stopped.status == "n/a"
    # A refusal of the class that it builds on is met in its own line.
    (*_, failed, _) = examined(CONTRACT, subject(monkeypatch, "AsksWrongly", files=("base.py",)))
    assert failed.found.startswith("ValueError at broken_methods.py, line ")


def test_what_it_declares_is_held_against_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(trunk: TrunkSpec, given: Any) -> Work:
        whole = masked_work(trunk, given)
        return replace(whole, passes=(replace(whole.passes[0], blocks=1),))

    assert failures(list(examined(COSTS, subject(monkeypatch, "Base", work=half)))) == {"FLOPs"}


def test_hyperparameters_that_say_or_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithStyle(broken_methods.Base):
        def __init__(self, *, style: int, **sizes: Any) -> None:
            super().__init__(**sizes)

    monkeypatch.setattr(broken_methods, "Base", WithStyle)
    style = Hyperparameter(name="style", type=int, default=1, source="mine")
    broken = subject(
        monkeypatch,
        "Base",
        resolved={"mask_count": 8, "style": 1},
        hyperparameters=(MASK_COUNT, style),
    )
    assert failures(list(examined(CONTRACT[-1:], broken))) == {"sources", "hyperparameters act"}


def test_the_command_says_it_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject(monkeypatch, "Peeks")
    monkeypatch.setattr(conformance_training, "STEPS", 2)
    words = "check broken --protocol tests/tiny.yaml --set methods.mim.mask_count=7 --quick"
    assert main(words.split()) == 1
    shown = capsys.readouterr().out
    assert "FAILED  own pixels: a prediction moves by" in shown
    assert "-> hide the patch" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_stopped_it_does_not_say_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stops(self: object, *arguments: object) -> None:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(broken_methods.Base, "forward", stops)
    subject(monkeypatch, "Base")
    assert main(["check", "broken", "--protocol", "tests/tiny.yaml", "--quick"]) == 130
    shown = capsys.readouterr()
    assert "ok      class: Base" in shown.out
    assert shown.err == "\nstopped by SIGINT; nothing is kept, the same command begins anew.\n"


def test_the_command_tells_machines_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance_cost, "ROUNDS", 1)
    monkeypatch.setattr(conformance_cost, "STEP_FLOPS", 1.0)
    assert main(["check", "mim", "--protocol", "tests/tiny.yaml", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["kind"] == "method"
    assert content["counts"]["FAILED"] == 0
    assert content["counts"]["ok"] == 30
    (times,) = [one for one in content["findings"] if one["what"] == "time of a step"]
    assert all(f"\n{name} " in times["found"] for name in ("mim", "pim", "mapet", "beit", "cae"))


def test_scratch_has_a_trunk_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "scratch", "--protocol", "tests/tiny.yaml"]) == 0
    assert "equal trunk: timm's" in " ".join(capsys.readouterr().out.split())
