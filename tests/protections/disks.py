"""Disks that are full, read-only or broken, and files that are damaged or gone."""

from __future__ import annotations

from tests.protections import Protection

_FILES, _DAMAGE = "tests/disks/test_full_files.py", "tests/disks/test_damage.py"
_MATRIX = f"{_DAMAGE}::test_damage_is_never_taken_for_the_whole"

PROTECTIONS = (
    Protection(
        promise="a full disk ends the run with a sentence, and no cell is recorded as failed",
        file="benchmark/execute.py",
        removed="            elif code == DISK:\n",
        instead="            elif code == -DISK:\n",
        test="tests/disks/test_full_run.py::test_a_full_disk_ends_the_run_with_a_sentence_and_nothing_is_failed",
    ),
    Protection(
        promise="what a disk does to a cell's process is no failure of the cell",
        file="benchmark/worker.py",
        removed="            raise trouble from error\n",
        instead="            pass\n",
        test="tests/disks/test_full_run.py::test_a_full_disk_ends_the_run_with_a_sentence_and_nothing_is_failed",
    ),
    Protection(
        promise="the sentence about a full disk needs no disk",
        file="benchmark/disk_trouble.py",
        removed="                os.write(descriptor, line)\n",
        instead="                pass\n",
        test=f"{_FILES}::test_last_words_need_no_disk",
    ),
    Protection(
        promise="trouble of the disk is found behind a library's own error",
        file="benchmark/disk_trouble.py",
        removed="        seen = seen.__cause__ or seen.__context__\n",
        instead="        seen = None\n",
        test=f"{_FILES}::test_trouble_of_a_disk_is_told_from_failures_wherever_it_stands",
    ),
    Protection(
        promise="a disk that cannot be read is named, also from a data loader's process",
        file="benchmark/disk_trouble.py",
        removed="""        super().__init__(text.rpartition(f"{type(self).__name__}: ")[2].strip())
""",
        instead="        super().__init__(text)\n",
        test=f"{_FILES}::test_a_disk_that_cannot_be_read_is_named_also_from_another_process",
    ),
    Protection(
        promise="a file that is written again stays whole on a full disk",
        file="protocols/files.py",
        removed="            os.replace(temporary, path)\n        finally:\n",
        instead="        finally:\n            os.replace(temporary, path)\n",
        test=f"{_FILES}::test_a_full_disk_is_named_and_what_was_there_stays",
    ),
    Protection(
        promise="a file that did not fit leaves nothing that fills the disk further",
        file="protocols/files.py",
        removed="            temporary.unlink(missing_ok=True)\n",
        instead="            pass\n",
        test=f"{_FILES}::test_a_full_disk_is_named_and_what_was_there_stays",
    ),
    Protection(
        promise="a failed write names the file",
        file="protocols/files.py",
        removed="            error.filename = str(path)\n",
        instead="            pass\n",
        test=f"{_FILES}::test_a_full_disk_is_named_and_what_was_there_stays",
    ),
    Protection(
        promise="a line that was cut short does not run into the next one",
        file="protocols/files.py",
        removed="""        start = "\\n" if is_torn else ""\n""",
        instead="""        start = ""\n""",
        test=f"{_FILES}::test_a_line_that_was_cut_short_does_not_run_into_the_next_one",
    ),
    Protection(
        promise="an attempt's line that was cut short costs no record",
        file="benchmark/record_cell.py",
        removed="    except (ValueError, KeyError, TypeError, RecursionError):\n",
        instead="    except ZeroDivisionError:\n",
        test=f"{_FILES}::test_an_attempt_that_was_cut_short_costs_no_other",
    ),
    Protection(
        promise="unfinished files of killed processes are removed at the next start",
        file="protocols/files.py",
        removed="                    path.unlink()\n",
        instead="                    pass\n",
        test=f"{_FILES}::test_leftovers_of_killed_processes_go_and_nothing_else",
    ),
    Protection(
        promise="a file that somebody may still write is no leftover",
        file="protocols/files.py",
        removed="                if time.time() - path.stat().st_mtime >= older_than:\n",
        instead="                if True:\n",
        test=f"{_FILES}::test_leftovers_of_killed_processes_go_and_nothing_else",
    ),
    Protection(
        promise="an unfinished checkpoint never counts as one of the two that are kept",
        file="benchmark/checkpoint.py",
        removed=""" if one <= path and one.with_suffix(".sha256").is_file()]""",
        instead="]",
        test=f"{_FILES}::test_a_disk_that_was_full_before_leaves_what_is_newest_and_whole",
    ),
    Protection(
        promise="a damaged checkpoint, or its digest, is passed over for the one before it",
        file="benchmark/checkpoint.py",
        removed='                if hashlib.file_digest(stream, "sha256").hexdigest().encode() == '
        "digest.read_bytes().strip():\n",
        instead="                if digest.read_bytes().strip():\n",
        test=f"{_MATRIX}[a-checkpoint]",
    ),
    Protection(
        promise="a checkpoint that vanished is no reason to begin from nothing",
        file="benchmark/checkpoint.py",
        removed="""{path.with_suffix(".pt") for path in folder.glob("step-*")}""",
        instead="""folder.glob("step-*.pt")""",
        test=f"{_MATRIX}[the-only-checkpoint]",
    ),
    Protection(
        promise="weights that are not those of the record are never loaded",
        file="benchmark/checkpoint.py",
        removed="    if found != digest:\n",
        instead="    if False:\n",
        test=f"{_MATRIX}[weights]",
    ),
    Protection(
        promise="no byte of a token store may differ from what was written",
        file="tokenizers/store_files.py",
        removed="    if found != stated:\n",
        instead="    if False:\n",
        test=f"{_MATRIX}[a-store's-tokens.npy]",
    ),
    Protection(
        promise="a shard that is not as it was written is encoded again",
        file="benchmark/encoding.py",
        removed=""" != self.shards.facts(shard).get("sha256"):\n""",
        instead=""" == "nothing":\n""",
        test=f"{_MATRIX}[a-shard]",
    ),
    Protection(
        promise="predictions are those that the record names",
        file="leaderboard/predictions.py",
        removed="    if found != expected:\n",
        instead="    if False:\n",
        test="tests/leaderboard/test_predictions.py::test_damaged_and_missing_files",
    ),
    Protection(
        promise="kept features that are damaged are computed again",
        file="benchmark/kept_features.py",
        removed="    if facts != _facts(identity, features):\n",
        instead="    if False:\n",
        test=f"{_MATRIX}[kept-features]",
    ),
    Protection(
        promise="a training whose beginning is not known does not go on",
        file="benchmark/survey.py",
        removed="    if not isinstance(begun, dict):\n",
        instead="    if begun is None:\n        return None\n    if not isinstance(begun, dict):\n",
        test=f"{_MATRIX}[begun.json]",
    ),
    Protection(
        promise="a pack that is damaged is found by its digests",
        file="benchmark/packing.py",
        removed="            if found.digest != digests[found.shard]:\n",
        instead="            if False:\n",
        test="tests/benchmark/test_packed.py::test_damage_is_found_and_made_anew",
    ),
    Protection(
        promise="no row of a pack is trained on that is not as it was written",
        file="benchmark/packed.py",
        removed=" and row_sum(row) != self._sums[position]:\n",
        instead=" and False:\n",
        test="tests/disks/test_packs.py::test_a_changed_byte_is_seen_where_it_is_read",
    ),
    Protection(
        promise="the sums that a pack's rows are held against are those that were written",
        file="benchmark/packed.py",
        removed="    if hashlib.sha256(content).hexdigest() != manifest.sums:\n",
        instead="    if False:\n",
        test="tests/disks/test_packs.py::test_damaged_sums_are_refused_and_made_anew",
    ),
    Protection(
        promise="a file system without locks is said plainly",
        file="benchmark/file_lock.py",
        removed="    except BlockingIOError:\n",
        instead="    except OSError:\n",
        test="tests/disks/test_other_disks.py::test_a_file_system_without_locks_is_said_plainly",
    ),
    Protection(
        promise="a damaged metrics line stops no display",
        file="benchmark/metrics.py",
        removed="    except (ValueError, RecursionError):\n        return None\n",
        instead="    except RecursionError:\n        return None\n",
        test=f"{_DAMAGE}::test_what_only_informs_is_read_or_passed_over",
    ),
)
