"""Two processes on one work dir."""

from __future__ import annotations

from tests.protections import Protection

LOCKS = "tests/campaigns/test_file_lock.py::"
TWO = "tests/campaigns/test_two_at_once.py::"

PROTECTIONS = (
    Protection(
        promise="two runs never share a work dir",
        file="benchmark/execute.py",
        removed="        if not try_lock(lock):\n",
        instead="        if False:\n",
        test=f"{TWO}test_of_two_executions_the_second_raises_before_it_reads",
    ),
    Protection(
        promise="the second run names the first one's process, machine, time and command",
        file="benchmark/execute.py",
        removed="            owner = in_brackets(owner_of(folder / LOCK_NAME))\n",
        instead='            owner = ""\n',
        test=f"{TWO}test_a_second_run_says_who_has_the_work_dir",
    ),
    Protection(
        promise="of several processes that start one cell at once, one runs it",
        file="benchmark/file_lock.py",
        removed="    except BlockingIOError:\n        return False\n",
        instead="    except BlockingIOError:\n        return True\n",
        test=f"{TWO}test_a_cell_runs_in_one_process_at_a_time_and_once_in_all",
    ),
    Protection(
        promise="who waited for a cell finds it done, and does not run it again",
        file="benchmark/worker.py",
        removed='if record is not None and record.status == "done" and record != job.known:',
        instead="if False:",
        test=f"{TWO}test_a_cell_runs_in_one_process_at_a_time_and_once_in_all",
    ),
    Protection(
        promise="a killed owner's forked children do not keep its lock",
        file="benchmark/file_lock.py",
        removed="os.register_at_fork(after_in_child=_leave_to_parent)\n",
        instead="",
        test=f"{LOCKS}test_a_child_that_outlives_the_owner_does_not_keep_its_lock",
    ),
    Protection(
        promise="who finds a lock taken does not wipe its owner's name",
        file="benchmark/file_lock.py",
        removed='        with path.open("a") as lock:\n',
        instead='        with path.open("w") as lock:\n',
        test=f"{LOCKS}test_a_second_one_does_not_wipe_the_owners_name",
    ),
    Protection(
        promise="a lock whose file was deleted meanwhile counts for nothing",
        file="benchmark/file_lock.py",
        removed="            if try_lock(lock) and is_in_place(lock):\n",
        instead="            if try_lock(lock):\n",
        test=f"{LOCKS}test_a_lock_that_was_deleted_meanwhile_is_none",
    ),
    Protection(
        promise="an owner's name sends nothing to a terminal but text",
        file="benchmark/file_lock.py",
        removed='"".join(one if one.isprintable() else "?" for one in text)',
        instead="text",
        test=f"{LOCKS}test_an_owner_commands_no_terminal",
    ),
    Protection(
        promise="a cell whose folder was deleted while it ran records nothing over another's work",
        file="benchmark/worker.py",
        removed="            _check_in_place(lock, context.folder)\n            write_cell_record(\n",
        instead="            write_cell_record(\n",
        test=f"{TWO}test_whose_folder_was_deleted_records_nothing",
    ),
    Protection(
        promise="a run leaves a cell that somebody runs by hand to that process, and says so",
        file="benchmark/execute.py",
        removed="if self.starts[one.cell.id] >= attempts and code == LOCKED:",
        instead="if False:",
        test=f"{TWO}test_a_run_beside_a_cell_by_hand_records_nothing_of_it",
    ),
    Protection(
        promise="what a run says of a killed cell is never written while another process has it",
        file="benchmark/execute.py",
        removed="                is_kept=lock is not None,\n",
        instead="                is_kept=True,\n",
        test=f"{TWO}test_what_a_run_says_of_a_killed_cell_never_stands_over_anothers_work",
    ),
    Protection(
        promise="a cell that runs is shown as running, with who runs it",
        file="benchmark/survey.py",
        removed='        return "running", (f"by {owner}",) if owner else ()\n',
        instead='        return "running", ()\n',
        test=f"{TWO}test_a_run_beside_a_cell_by_hand_records_nothing_of_it",
    ),
)
