"""Weeks of work in one folder: records that were edited, versions, redoing, clocks, files that go."""

from __future__ import annotations

from tests.protections import Protection

DIGESTS = "tests/campaigns/test_record_digest.py::"
REDO = "tests/campaigns/test_redo.py::"
LONG = "tests/campaigns/test_long_campaigns.py::"

PROTECTIONS = (
    Protection(
        promise="a record is written under the digest of all it says",
        file="leaderboard/record.py",
        removed='    values["digest"] = content_digest(values)\n',
        instead='    values["digest"] = ""\n',
        test=f"{DIGESTS}test_an_edit_by_hand_is_named",
    ),
    Protection(
        promise="a record that was edited by hand says so, whatever the field",
        file="leaderboard/record.py",
        removed='        raise HarnessError(f"{path} {fault}; {remedy}")\n',
        instead="        pass\n",
        test=f"{DIGESTS}test_an_edit_by_hand_is_named",
    ),
    Protection(
        promise="numbers that no record holds are damage, not a crash",
        file="leaderboard/record.py",
        removed='    except ValueError as error:\n        return f"was edited',
        instead='    except ZeroDivisionError as error:\n        return f"was edited',
        test=f"{DIGESTS}test_what_no_record_holds_is_damage",
    ),
    Protection(
        promise="all damaged records are named at once",
        file="leaderboard/record.py",
        removed="            faults.append(str(error))\n            continue\n",
        instead="            raise\n",
        test=f"{DIGESTS}test_all_damaged_records_are_named_at_once",
    ),
    Protection(
        promise="a run names all damaged records before it starts",
        file="benchmark/commands/run.py",
        removed="    refuse_damaged(states)\n",
        instead="",
        test=f"{DIGESTS}test_all_damaged_records_are_named_at_once",
    ),
    Protection(
        promise="a bundle's record that was edited is refused",
        file="leaderboard/bundle_cells.py",
        removed="    fault = digest_fault(record, content)\n",
        instead='    fault = ""\n',
        test=f"{DIGESTS}test_a_bundled_record_that_was_edited_is_refused_by_name",
    ),
    Protection(
        promise="a board counts the records that have no digest",
        file="leaderboard/notes.py",
        removed="    notes += _unchecked(done)\n",
        instead="",
        test=f"{DIGESTS}test_a_record_of_an_older_version_is_read_and_counted",
    ),
    Protection(
        promise="without --redo-stale what is stale stays, and with it runs again",
        file="benchmark/execute.py",
        removed="and settled and not (redo_stale and cell.id in stale):",
        instead="and settled and not (cell.id in stale):",
        test=f"{REDO}test_a_run_redoes_exactly_what_was_asked_for",
    ),
    Protection(
        promise="without --redo-failed what failed stays",
        file="benchmark/execute.py",
        removed='(record.status == "failed" and not redo_failed)',
        instead="False",
        test=f"{REDO}test_a_run_redoes_exactly_what_was_asked_for",
    ),
    Protection(
        promise="--redo-stale makes anew what was made from files that are others now",
        file="benchmark/execute.py",
        removed="            if known.parents.get(cell.id, digest) != digest:\n",
        instead="            if False:\n",
        test="tests/benchmark/test_redo_chain.py::test_children_of_what_is_made_anew_are_made_anew_too",
    ),
    Protection(
        promise="--redo-stale alone runs nothing that failed",
        file="benchmark/execute.py",
        removed='            if known is None or known.status != "done":\n',
        instead="            if known is None:\n",
        test=f"{REDO}test_a_failed_child_of_a_stale_cell_waits_for_its_own_flag",
    ),
    Protection(
        promise="versions of a protocol share a work dir, and no cell",
        file="benchmark/plan.py",
        removed='            "slices": dict(self.slices),\n',
        instead="",
        test=f"{LONG}test_versions_of_a_protocol_stand_side_by_side",
    ),
    Protection(
        promise="files that a user deleted are said to be missing, with the remedy",
        file="benchmark/survey.py",
        removed="        if lost:\n            remedy =",
        instead="        if False:\n            remedy =",
        test=f"{LONG}test_what_a_user_deletes_is_said_and_made_again",
    ),
    Protection(
        promise="an attempt under a clock that was ahead does not make a record the newest",
        file="leaderboard/lineage.py",
        removed='record.attempts[-1].ended if record.attempts else ""',
        instead='max((one.ended for one in record.attempts), default="")',
        test=f"{LONG}test_the_latest_attempt_counts_and_not_the_latest_date",
    ),
    Protection(
        promise="a campaign of thousands of cells works out each cell's id once",
        file="benchmark/plan.py",
        removed="    @cached_property\n    def id(",
        instead="    @property\n    def id(",
        test=f"{REDO}test_a_cells_id_is_worked_out_once",
    ),
)
