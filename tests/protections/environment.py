"""The machine: what doctor finds, and what boards say of rows that were made on unlike ones."""

from __future__ import annotations

from tests.protections import Protection

DOCTOR = "tests/benchmark/test_doctor.py"
MACHINE = "tests/benchmark/test_doctor_machine.py"
BOARDS = "tests/leaderboard/test_environments.py"
PROTECTIONS = (
    Protection(
        promise="a check of doctor that hangs ends at its limit, and the others are made",
        file="benchmark/doctor.py",
        removed="            if not self._receiver.poll(max(0.0, deadline - time.monotonic())):\n",
        instead="            if not self._receiver.poll(None):\n",
        test=f"{DOCTOR}::test_a_check_that_crashes_hangs_or_raises_has_failed_and_the_others_go_on",
    ),
    Protection(
        promise="a check of doctor that crashes takes no other with it",
        file="benchmark/doctor.py",
        removed="                if not findings.are_whole:\n                    break\n",
        instead="",
        test=f"{DOCTOR}::test_a_check_that_crashes_hangs_or_raises_has_failed_and_the_others_go_on",
    ),
    Protection(
        promise="what a check of doctor started ends with it",
        file="benchmark/doctor.py",
        removed="            os.killpg(process.pid or 0, signal.SIGKILL)\n",
        instead="            pass\n",
        test=f"{DOCTOR}::test_what_a_check_started_ends_with_it",
    ),
    Protection(
        promise="doctor ends with 1 if a check failed",
        file="benchmark/commands/doctor.py",
        removed='    return BAD if counts["FAILED"] else GOOD\n',
        instead="    return GOOD\n",
        test=f"{DOCTOR}::test_the_exit_code_and_the_lines",
    ),
    Protection(
        promise="doctor names packages that are not as requirements.txt pins them",
        file="benchmark/doctor_packages.py",
        removed='        elif here.partition("+")[0] != wanted:',
        instead="        elif False:",
        test=f"{DOCTOR}::test_versions_are_held_against_the_pins",
    ),
    Protection(
        promise="doctor notices a decoder that gives other pixels",
        file="benchmark/doctor_packages.py",
        removed="    return [name for name in here if getattr(here[name], what) != ",
        instead="    return [name for name in () if getattr(here[name], what) != ",
        test=f"{DOCTOR}::test_another_decoder_is_noticed_and_named",
    ),
    Protection(
        promise="a damaged probe image is not taken for another decoder",
        file="benchmark/decode_probe.py",
        removed="        if sha256_of_file(path) != digest:\n",
        instead="        if False:\n",
        test=f"{DOCTOR}::test_a_damaged_probe_image_says_nothing_of_decoders",
    ),
    Protection(
        promise="every record says how its machine decodes images",
        file="benchmark/provenance.py",
        removed="        found[DECODE_DIGEST] = decode_digest()\n",
        instead="        pass\n",
        test=f"{DOCTOR}::test_every_record_says_how_this_machine_decodes",
    ),
    Protection(
        promise="doctor notices locks that keep nobody out",
        file="benchmark/doctor_disk.py",
        removed="    if second != _EXCLUDED:\n",
        instead="    if False:\n",
        test=f"{MACHINE}::test_locks_that_keep_nobody_out",
    ),
    Protection(
        promise="doctor notices a lock that outlives its owner",
        file="benchmark/doctor_disk.py",
        removed="    if is_free:\n",
        instead="    if True:\n",
        test=f"{MACHINE}::test_a_lock_that_outlives_its_owner",
    ),
    Protection(
        promise="doctor notices files that are not replaced whole",
        file="benchmark/doctor_disk.py",
        removed="    if seen != old or path.read_bytes() != new or left:\n",
        instead="    if False:\n",
        test=f"{MACHINE}::test_files_that_are_not_replaced_whole",
    ),
    Protection(
        promise="doctor notices too few open files for the reading processes",
        file="benchmark/doctor_machine.py",
        removed="    if soft < needed:\n",
        instead="    if False:\n",
        test=f"{MACHINE}::test_a_low_limit_on_open_files",
    ),
    Protection(
        promise="doctor notices a GPU that is there and that torch cannot use",
        file="benchmark/doctor_gpu.py",
        removed="    if not torch.cuda.is_available():\n",
        instead="    if False:\n",
        test=f"{MACHINE}::test_a_gpu_that_is_promised_and_cannot_be_used",
    ),
    Protection(
        promise="rows whose images were decoded otherwise are compared with no other",
        file="leaderboard/fairness_record.py",
        removed="        if digest is not None:\n            facts[Scope(DECODED",
        instead="        if False:\n            facts[Scope(DECODED",
        test=f"{BOARDS}::test_a_row_whose_images_were_decoded_otherwise_is_red_and_compared_with_none",
    ),
    Protection(
        promise="a probe has no gain over a random trunk whose images were decoded otherwise",
        file="leaderboard/runs.py",
        removed="        if decoded_otherwise(run.record, other.record):\n",
        instead="        if False:\n",
        test=f"{BOARDS}::test_a_probe_has_no_gain_over_a_random_trunk_that_was_shown_other_pixels",
    ),
    Protection(
        promise="doctor does not take its own folder in an empty work dir for another's",
        file="benchmark/layout.py",
        removed=" if not path.name.startswith(SCRATCH_PREFIX))",
        instead=")",
        test=f"{DOCTOR}::test_all_quick_checks_of_this_machine_in_one_go",
    ),
    Protection(
        promise="a seed that does not know how it decoded hides no others of its row",
        file="leaderboard/fairness_profile.py",
        removed="            held = {**single.held, **held}\n",
        instead="",
        test=f"{BOARDS}::test_a_seed_that_does_not_know_hides_no_others",
    ),
    Protection(
        promise="boards say which rows were made with other versions",
        file="leaderboard/notes.py",
        removed="    notes += environment_notes(done)\n",
        instead="",
        test=f"{BOARDS}::test_libraries_that_differ_are_said_row_by_row_and_take_nobody_out",
    ),
)
