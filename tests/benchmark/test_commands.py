"""plan, status, explain, fork, lock and completion: what they print, count and write."""

from __future__ import annotations

import json
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import main
from benchmark.plan import STAGES
from protocols import load_protocol
from protocols.load import value_at
from protocols.lock import LOCK, read_lock
from tests.error_settings import lock_at

ROOT = Path(__file__).parent.parent.parent
FAIR_COUNTS = {
    "tokenise": 6,
    "pretrain": 34,
    "finetune": 37,
    "linear-probe": 30 + 9,
    "token-classification": 6,
    "knn": 0,
}


@pytest.fixture(autouse=True)
def _narrow_terminal_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert not output.err
    return output.out


def shown_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(shown(capsys, *arguments, "--json"))


@pytest.mark.parametrize("protocol", ["mini", "fair300"])
@pytest.mark.parametrize(
    "command",
    [["plan"], ["plan", "--cells", "--seeds", "0", "1"], ["status"], ["explain"]],
    ids=["plan", "plan --cells", "status", "explain"],
)
def test_no_line_is_wider_than_the_terminal(
    command: list[str], protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = command
    text = shown(capsys, name, *([protocol] if name == "explain" else ["--protocol", protocol]), *more)
    wide = [line for line in text.splitlines() if len(line) > 80]
    # A single word, such as an address or a digest, is never broken.
    assert [line for line in wide if len(line.split()) > 1] == []
    assert len(wide) <= 2  # the addresses of two files
    assert list(Path().iterdir()) == [], "asking makes nothing"


def test_plan_of_mini(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "plan", "--protocol", "mini", "--methods", "mim", "--gpus", "1")
    assert "mini, version 1: 8 cells, seeds 0" in text
    lines = text.splitlines()
    (pretrain,) = [line for line in lines if line.startswith("pretrain ")]
    assert pretrain.split()[:4] == ["pretrain", "vit-mini", "2", "2"]
    assert "on 1 GPU, one cell each" in text
    assert "missing" not in text
    listed = shown(capsys, "plan", "--protocol", "mini", "--methods", "mim", "--cells")
    (probe,) = [line for line in listed.splitlines() if "linear-probe mim/k-pixel" in line]
    number, state, *after = probe.split()[:4]
    (parent,) = [line for line in listed.splitlines() if line.lstrip().startswith(f"{after[1]} ")]
    assert f"{state} {after[0]}" == "to do"
    assert "pretrain mim/k-pixel" in parent
    assert int(number) > int(after[1])


def test_plan_counts_are_what_the_views_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Set arithmetic over the views that are run by default, with nothing of the planner's."""
    protocol = load_protocol("fair300")
    tokenised: set[tuple[str, str]] = set()
    trained: set[tuple[Any, ...]] = set()
    measured: dict[str, set[tuple[Any, ...]]] = {name: set() for name in protocol.names("evaluations")}
    for view in map(protocol.views.__getitem__, protocol.defaults.views):
        for cells in view.cells:
            if not cells.methods:
                for tokenizer, evaluation in product(cells.tokenizers, cells.evaluations):
                    tokenised |= {(tokenizer, "pretraining"), (tokenizer, "test")}
                    measured[evaluation].add((tokenizer,))
            for method, trunk in product(cells.methods, cells.trunks):
                for tokenizer in cells.tokenizers or (None,):
                    own = protocol.method_values(method, trunk)
                    trials = [own]
                    for name, values in cells.hyperparameters.items():
                        trials = [{**trial, name: value} for trial in trials for value in values]
                    for trial in trials:
                        row = (method, tokenizer, trunk, tuple(sorted(trial.items())))
                        if tokenizer is not None:
                            tokenised.add((tokenizer, "pretraining"))
                            trained.add(row)
                        for evaluation in cells.evaluations:
                            measured[evaluation].add(row)
    expected = {
        "tokenise": len(tokenised),
        "pretrain": len(trained),
        **{
            stage: sum(len(rows) for name, rows in measured.items()
                       if protocol.evaluation(name, "vit-b").kind == stage)
            for stage in STAGES[2:]
        },
    }  # fmt: skip
    transfer = [name for name in measured if getattr(protocol.evaluation(name, "vit-b"), "transfer_set", 0)]
    assert expected == FAIR_COUNTS
    assert len(measured["linear-probe"]) == 30
    assert sum(len(measured[name]) for name in transfer) == 9
    plan = shown_json(capsys, "plan", "--protocol", "fair300", "--methods", "all")
    assert plan["stages"] == expected
    by_name = [cell["evaluation"] for cell in plan["cells"] if cell["evaluation"]]
    assert {name: by_name.count(name) for name in measured} == {
        name: len(rows) for name, rows in measured.items()
    }


def test_two_seeds_double_everything_but_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    plan = shown_json(capsys, "plan", "--protocol", "fair300", "--methods", "all", "--seeds", "0", "1")
    doubled = {stage: number * (1 if stage == "tokenise" else 2) for stage, number in FAIR_COUNTS.items()}
    assert plan["stages"] == doubled
    assert plan["states"]["blocked"] == len(plan["cells"]) == sum(doubled.values())


def test_plan_as_json_adds_up_and_orders_parents_first(capsys: pytest.CaptureFixture[str]) -> None:
    plan = shown_json(capsys, "plan", "--protocol", "fair300", "--tflops", "50", "--gpus", "4")
    cells, todo = plan["cells"], plan["open"]
    seen: set[str] = set()
    for cell in cells:
        assert set(cell["parents"]) <= seen
        assert cell["gpu_hours"] == pytest.approx(cell["train_flops"] / 50e12 / 3600)
        assert cell["views"], "every cell is there for some table"
        seen.add(cell["id"])
    assert len(seen) == len(cells)
    for total, field in (("gpu_hours", "gpu_hours"), ("train_flops", "train_flops"),
                         ("disk_bytes_kept", "disk_bytes_kept")):  # fmt: skip
        assert todo[total] == pytest.approx(sum(cell[field] for cell in cells))
    most = sorted((cell["disk_bytes_while_running"] for cell in cells), reverse=True)[:4]
    assert todo["disk_bytes_while_running"] == sum(most)
    assert todo["gpu_hours"] / 4 <= todo["wall_hours"] < todo["gpu_hours"]
    assert plan["model"]["gpus"] == 4
    assert {one["what"].split(":")[0] for one in plan["missing"]} >= {
        "data set imagenet-1k",
        "tokenizer vq-kd",
    }
    assert all(one["remedy"] for one in plan["missing"])


def test_selection_narrows_the_views(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--protocol", "fair300", "--methods", "mapet", "--views", "table6"]
    plan = shown_json(capsys, *arguments)
    points = [c["hyperparameters"]["cutting_point"] for c in plan["cells"] if c["stage"] == "pretrain"]
    assert points == [30, 40, 50, 60, 98]
    assert {cell["trunk"] for cell in plan["cells"]} == {None, "vit-b"}


def test_status(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "status", "--protocol", "fair300", "--views", "table5")
    assert "fair300, version 1, in runs: 13 cells" in text
    assert "blocked (plan says how to provide what is missing):" in text
    assert "- data set food-101: no --data-root DIR is given (3 cells)" in text
    cells = shown_json(capsys, "status", "--protocol", "mini", "--methods", "scratch")["cells"]
    assert [(cell["evaluation"], cell["state"], cell["reasons"]) for cell in cells] == [
        ("finetune", "to do", []),
        ("linear-probe", "to do", []),
    ]


@pytest.mark.parametrize("name", ["mini", "fair300"])
def test_explain_covers_every_value_with_its_source(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    protocol = load_protocol(name)
    explained = shown_json(capsys, "explain", name)
    assert [one["path"] for one in explained["values"]] == list(protocol.sources)
    for one in explained["values"]:
        source = protocol.sources[one["path"]]
        value = value_at(protocol, one["path"])
        assert one["value"] == (list(value) if isinstance(value, tuple) else value)
        assert (one["source"], one["assumed"]) == (source.source, source.assumed)
        assert one["alternatives"] == list(source.alternatives)
        assert one["source"].strip()
    assert explained["slices"] == protocol.slices
    assert explained["digest"] == protocol.digest
    assert explained["unlocked"] == []
    # Counted in the text itself: every value is written `{value: ...`.
    file = (ROOT / "protocols" / f"{name}.yaml").read_text()
    assert len(explained["values"]) == sum(
        line.count("{value:") for line in file.splitlines() if not line.startswith("#")
    )
    text = shown(capsys, "explain", name)
    assumed = sum(one["assumed"] for one in explained["values"])
    assert f"{assumed} of {len(protocol.sources)} values are assumed" in text
    assert text.count("\n *") == assumed
    for view in protocol.views:
        assert f"\n  {view}: " in text


def test_explain_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    values = shown_json(capsys, "explain", "fair300", "evaluations.finetune.peak_lr")["values"]
    assert {one["path"].rpartition(".")[2]: one["value"] for one in values} == {
        "vit-t": 2.5e-4, "vit-s": 5e-3, "vit-b": 5e-4,
    }  # fmt: skip
    text = shown(capsys, "explain", "fair300", "pretraining")
    assert "peak_lr = 0.0015  [Table 7]" in text
    assert "finetune" not in text
    assert "None of the values is assumed" in text
    # A part is a whole name: `data.t` is no part of data.test.
    assert main(["explain", "mini", "data.t"]) == 2
    assert "data.test" in capsys.readouterr().err


def test_fork_copies_comments_and_changes(capsys: pytest.CaptureFixture[str]) -> None:
    """From a file that differs from its lock, which every other command refuses."""
    edited = (
        (ROOT / "protocols" / "mini.yaml").read_text().replace("epochs: {value: 5,", "epochs: {value: 6,")
    )
    Path("edited.yaml").write_text(edited.replace("version: 1", "version: 1  # edited", 1))
    assert main(["plan", "--protocol", "edited.yaml"]) == 3
    capsys.readouterr()
    text = shown(capsys, "fork", "edited.yaml", "longer")
    assert "longer.yaml: protocol longer, version 1" in text
    assert Path("longer.yaml").read_text() == edited.replace("name: mini", "name: longer", 1)
    fork = load_protocol("longer.yaml")
    assert (fork.name, fork.pretraining.epochs) == ("longer", 6)
    assert main(["plan", "--protocol", "longer.yaml"]) == 0


def test_fork_of_a_release_differs_in_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "fork", "fair300", "my_own", "--out", "elsewhere.yaml")
    fork, original = load_protocol("elsewhere.yaml"), load_protocol("fair300")
    assert (fork.name, fork.version) == ("my_own", 1)
    assert fork.slices == original.slices
    assert fork.sources == original.sources


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini", "Mine"], "cannot be a protocol's name"),
        (["mini", "../mine"], "cannot be a protocol's name"),
        (["mini", "mini"], "is taken by another protocol"),
        (["mini", "fair300"], "is taken by another protocol"),
        (["mini", "tokens"], "is taken by the folder of the token stores"),
        (["mini", "mine", "--out", "mine.txt"], "ends in .yaml"),
        (["mini", "mine", "--out", "nowhere/mine.yaml"], "there is no folder nowhere; make it"),
        (["minni", "mine"], "did you mean 'mini'"),
    ],
)
def test_a_fork_that_cannot_be_leaves_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fork", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_fork_overwrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("dear diary")
    assert main(["fork", "mini", "mine"]) == 2
    assert "mine.yaml exists already" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "dear diary"


def test_lock_adds_what_is_new_and_changes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path("digests.lock")
    copy.write_text(LOCK.read_text())
    before = copy.read_text()
    shown(capsys, "fork", "mini", "mine")
    with lock_at(copy):
        slices = len(load_protocol("mine.yaml").slices)
        assert f"mine, version 1: {slices} slices locked now, 0 before" in shown(capsys, "lock", "mine.yaml")
        after = copy.read_text()
        assert after.startswith(before)
        assert len(after.splitlines()) == len(before.splitlines()) + slices
        assert read_lock(copy)["mine", 1].keys() == load_protocol("mine.yaml").slices.keys()
        assert f"0 slices locked now, {slices} before" in shown(capsys, "lock", "mine.yaml")
        assert copy.read_text() == after
        text = Path("mine.yaml").read_text()
        gained = (
            "trunks:\n  vit-wide:\n" + text[text.index("    patch_size:") : text.index("tokenizers:\n  k-p")]
        )
        Path("mine.yaml").write_text(text.replace("trunks:\n  vit-mini:\n", gained + "  vit-mini:\n", 1))
        assert f"1 slice locked now, {slices} before" in shown(capsys, "lock", "mine.yaml")
        assert copy.read_text().startswith(after)
        Path("mine.yaml").write_text(text.replace("epochs: {value: 5,", "epochs: {value: 6,"))
        assert main(["lock", "mine.yaml"]) == 3
        assert "pretraining: epochs was 5, is 6" in capsys.readouterr().err
    assert LOCK.read_text() == before


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    line = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}\n"
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}\n'
        "$(complete -p run_benchmark.py | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


def test_completion_for_bash(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path("completion.bash")
    script.write_text(shown(capsys, "completion", "bash"))
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    program = "run_benchmark.py"
    assert set(completed(script, program, "")) >= {"plan", "status", "fork", "explain"}
    assert completed(script, program, "--redo-s") == ["--redo-stale"]
    assert completed(script, program, "--methods", "map") == ["mapet"]
    assert completed(script, program, "plan", "--methods", "mim", "map") == ["mapet"]
    assert completed(script, program, "plan", "--protocol", "fair") == ["fair300"]
    assert "--redo-stale" not in completed(script, program, "plan", "--")
    assert set(completed(script, program, "plan", "--views", "table")) >= {"table1", "table6"}
    assert set(completed(script, program, "--methods", "all")) == {"all", "all-known"}
    assert completed(script, program, "--track", "tensor") == ["tensorboard"]
    assert set(completed(script, program, "track", "--to", "")) == {"tensorboard", "wandb"}
    assert "k-pixel" in completed(script, program, "check", "k-p")
    Path("ring.py").touch()
    Path("weights.safetensors").touch()
    assert "ring.py" in completed(script, program, "check", "mim", "--plugin", "ri")
    assert "weights.safetensors" in completed(script, program, "--from-checkpoint", "weig")
    assert "weights.safetensors" in completed(script, program, "convert", "weig")


@pytest.mark.parametrize("shell", ["zsh", "tcsh", "fish"])
def test_completion_for_other_shells_knows_names(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = shown(capsys, "completion", shell)
    assert "redo-stale" in script
    assert "mapet" in script
