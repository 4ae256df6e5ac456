"""Killed anywhere: whatever is ended, nothing is lost, nothing half is read, nobody is left."""

from __future__ import annotations

from tests.protections import Protection

GAPS, STOPPED, CHAOS = "tests/chaos/test_gaps.py", "tests/chaos/test_stopped.py", "tests/chaos/test_chaos.py"
INTERRUPT, LAUNCHED = "tests/benchmark/test_interrupt.py", "tests/benchmark/test_launched_cells.py"

PROTECTIONS = (
    Protection(
        promise="a file that is written again is the old one or the new one, whole",
        file="protocols/files.py",
        removed='    temporary = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}")\n',
        instead="    temporary = path\n",
        test=f"{GAPS}::test_a_file_that_is_being_written_again_stays_what_it_was",
    ),
    Protection(
        promise="a checkpoint whose digest is there is there itself: the digest comes second",
        file="benchmark/checkpoint.py",
        removed="    write_atomically(path, buffer.getvalue())\n"
        '    write_atomically(path.with_suffix(".sha256"), '
        "hashlib.sha256(buffer.getbuffer()).hexdigest())\n",
        instead='    write_atomically(path.with_suffix(".sha256"), '
        "hashlib.sha256(buffer.getbuffer()).hexdigest())\n"
        "    write_atomically(path, buffer.getvalue())\n",
        test=f"{GAPS}::test_a_checkpoint_that_was_saved_is_there_whatever_happens_to_the_next",
    ),
    Protection(
        promise="the checkpoint before the newest is kept until the newest is whole",
        file="benchmark/checkpoint.py",
        removed="    buffer = io.BytesIO()\n    torch.save(",
        instead="    for other in _checkpoints(folder):\n        _remove(other)\n"
        "    buffer = io.BytesIO()\n    torch.save(",
        test=f"{GAPS}::test_a_checkpoint_that_was_saved_is_there_whatever_happens_to_the_next",
    ),
    Protection(
        promise="a shard of a pack is marked when its rows are on disk, not before",
        file="benchmark/packing.py",
        removed="        digest, damaged = hashlib.sha256(), list[DamagedRow]()\n",
        instead="        digest, damaged = hashlib.sha256(), list[DamagedRow]()\n"
        '        self.shards.mark_done(shard, sha256="")\n',
        test=f"{GAPS}::test_a_marker_of_a_shard_says_that_its_rows_are_on_disk",
    ),
    Protection(
        promise="SIGINT, SIGTERM and SIGHUP end a command with 128 + their number, and it says how to go on",
        file="benchmark/cli.py",
        removed="        stopped.say()\n        return stopped.exit_code\n",
        instead="        return 0\n",
        test=f"{STOPPED}::test_whatever_a_command_does_a_signal_ends_it_with_its_code_and_a_line_that_says_how_to_go_on",
    ),
    Protection(
        promise="no library's `except Exception` takes a signal",
        file="benchmark/stopping.py",
        removed="class Stopped(BaseException):",
        instead="class Stopped(Exception):",
        test=f"{STOPPED}::test_whatever_a_command_does_a_signal_ends_it_with_its_code_and_a_line_that_says_how_to_go_on",
    ),
    Protection(
        promise="further signals do not disturb an ending",
        file="benchmark/stopping.py",
        removed="        if _taken.number is None:\n",
        instead="        if True:\n",
        test=f"{STOPPED}::test_signals_after_the_first_do_not_disturb_the_ending",
    ),
    Protection(
        promise="a signal whose exception Python drops ends the harness all the same",
        file="benchmark/stopping.py",
        removed="    if _taken.is_listening and _taken.number is not None:\n",
        instead="    if False:\n",
        test=f"{STOPPED}::test_a_signal_that_python_drops_is_not_lost",
    ),
    Protection(
        promise="an error that a library makes of a signal is no error of a command",
        file="benchmark/cli.py",
        removed="    except Exception:\n        check_stopped()\n        raise\n",
        instead="    except Exception:\n        raise\n",
        test=f"{STOPPED}::test_an_error_that_a_library_made_of_a_signal_is_that_signal",
    ),
    Protection(
        promise="an error that a library makes of a signal is no failure of a cell",
        file="benchmark/worker.py",
        removed='        context.stop.obey("by a signal, which became this error")\n',
        instead="",
        test=f"{STOPPED}::test_a_cell_that_fails_of_a_signal_is_interrupted_and_no_failure",
    ),
    Protection(
        promise="a command whose terminal has gone ends with its signal's code",
        file="benchmark/stopping.py",
        removed="            _forget_if_closed(stream)\n",
        instead="            pass\n",
        test=f"{STOPPED}::test_a_terminal_that_has_gone_does_not_change_the_exit_code",
    ),
    Protection(
        promise="a command whose reader has gone does not end with 0",
        file="benchmark/cli.py",
        removed="    except BrokenPipeError:\n        # The reader",
        instead="    except FloatingPointError:\n        # The reader",
        test=f"{STOPPED}::test_a_command_whose_reader_has_gone_does_not_end_as_one_that_has_done_its_work",
    ),
    Protection(
        promise="a command under nohup outlives its terminal",
        file="benchmark/stopping.py",
        removed="        if number != signal.SIGHUP or handler is not signal.SIG_IGN:\n",
        instead="        if True:\n",
        test=f"{STOPPED}::test_a_command_under_nohup_outlives_its_terminal",
    ),
    Protection(
        promise="signals count from the program's first import on",
        file="run_benchmark.py",
        removed="    with exits_by_signals():\n",
        instead="    if True:\n",
        test=f"{STOPPED}::test_the_program_answers_signals_from_its_first_import_on",
    ),
    Protection(
        promise="a training loop that is told to stop saves its step first",
        file="benchmark/interrupt.py",
        removed="        if not self._deferred and not self._has_interrupted:\n",
        instead="        if not self._has_interrupted:\n",
        test=f"{INTERRUPT}::test_within_deferred_it_only_raises_the_flag",
    ),
    Protection(
        promise="a second signal leaves a cell time to note the first",
        file="benchmark/interrupt.py",
        removed="        self._has_interrupted = True\n        raise Interrupted(where)\n",
        instead="        raise Interrupted(where)\n",
        test=f"{STOPPED}::test_a_second_signal_leaves_a_cell_time_to_note_the_first",
    ),
    Protection(
        promise="a training that is told to stop in its last step does not go on to measure",
        file="benchmark/engine.py",
        removed='    training.stop.obey("after its last step")\n',
        instead="",
        test=f"{STOPPED}::test_a_training_that_is_stopped_in_its_last_step_saves_it_and_does_not_go_on_to_measure",
    ),
    Protection(
        promise="a record that is being written is written, whatever signal comes",
        file="benchmark/worker.py",
        removed="its record is a moment away.\n        with context.stop.deferred():\n",
        instead="its record is a moment away.\n        if True:\n",
        test=f"{STOPPED}::test_a_record_that_is_being_written_is_written",
    ),
    Protection(
        promise="what a kill left half-written goes when the cell is begun again",
        file="benchmark/worker.py",
        removed="                _clear_leftovers(context.folder)\n",
        instead="",
        test=f"{STOPPED}::test_what_a_kill_left_half_written_goes_when_the_cell_is_begun_again",
    ),
    Protection(
        promise="signals to all processes of a job leave the server that cells are forked from alive",
        file="benchmark/ends_with_harness.py",
        removed="    signal.signal(number, signal.SIG_IGN)\n",
        instead="    pass\n",
        test=f"{STOPPED}::test_so_does_one_that_is_started_because_the_last_has_just_died",
    ),
    Protection(
        promise="one that is started by itself, because the last has just died, is given what the first was",
        file="benchmark/forked_cell.py",
        removed="            with _given_to_a_server():\n                process.start()\n",
        instead="            process.start()\n",
        test=f"{STOPPED}::test_so_does_one_that_is_started_because_the_last_has_just_died",
    ),
    Protection(
        promise="the server that cells are forked from ends with the harness, while it imports, too",
        file="benchmark/ends_with_harness.py",
        removed="\ndie_with_parent()\n",
        instead="\n",
        test=f"{STOPPED}::test_the_server_that_cells_are_forked_from_ends_with_the_harness_whatever_it_does",
    ),
    Protection(
        promise="cells end with the server that they were forked from, and start again from another",
        file="benchmark/worker.py",
        removed="        return\n    die_with_parent()\n",
        instead="        return\n",
        test=f"{CHAOS}::test_whoever_is_killed_the_same_command_ends_with_the_same_bits",
    ),
    Protection(
        promise="who reads images for a killed process ends with it",
        file="benchmark/interrupt.py",
        removed="    die_with_parent()\n    for number",
        instead="    for number",
        test=f"{INTERRUPT}::test_who_reads_for_a_killed_process_ends_with_it",
    ),
    Protection(
        promise="processes of torchrun end with it, also those that it starts in its last moment",
        file="benchmark/elastic.py",
        removed="    os.environ[PARENT_VARIABLE] = str(os.getpid())\n",
        instead="",
        test=f"{STOPPED}::test_processes_of_torchrun_know_whose_end_is_theirs",
    ),
    Protection(
        promise="processes of torchrun end with it, and it with the harness",
        file="benchmark/die_with_parent.py",
        removed="    if libc.prctl(_SET_PDEATHSIG, signal.SIGKILL) != 0:\n",
        instead="    if libc is None:\n",
        test=f"{LAUNCHED}::test_killed_processes_leave_nobody_and_what_goes_on_ends_with_the_same_bits",
    ),
)
