"""Numbers that are none, memory that runs out, waits, and exactly n images."""

from __future__ import annotations

from tests.protections import Protection

BAD = "tests/benchmark/test_bad_numbers.py"
WAITS = "tests/benchmark/test_waits.py"
MEMORY = "tests/benchmark/test_out_of_memory.py"

PROTECTIONS = (
    Protection(
        promise="a loss or gradient that is not finite ends a training by its exact step",
        file="benchmark/step_numbers.py",
        removed="                if not math.isfinite(value):\n",
        instead="                if False:\n",
        test=f"{BAD}::test_the_exact_step_is_named_with_its_batch",
    ),
    Protection(
        promise="a gradient is looked at where nothing clips it",
        file="benchmark/engine.py",
        removed="            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)\n",
        instead="            assert gradients\n",
        test=f"{BAD}::test_the_exact_step_is_named_with_its_batch",
    ),
    Protection(
        promise="no checkpoint follows a step whose numbers are not finite",
        file="benchmark/between_steps.py",
        removed="        if not loop.numbers.read(loop):\n",
        instead="        if False:\n",
        test=f"{BAD}::test_no_checkpoint_holds_it_and_again_it_ends_the_same_way",
    ),
    Protection(
        promise="no checkpoint holds weights that are not finite",
        file="benchmark/step_numbers.py",
        removed="        return not bad_weights\n",
        instead="        return True\n",
        test=f"{BAD}::test_told_to_stop_it_does_not_save_weights_that_are_not_finite",
    ),
    Protection(
        promise="weights that the last step spoils are not exported",
        file="benchmark/step_numbers.py",
        removed="        if not self.read(loop):\n",
        instead="        if not self.read(loop) and False:\n",
        test=f"{BAD}::test_weights_that_the_last_step_spoils_are_never_exported",
    ),
    Protection(
        promise="a training that goes on says the same of the step before",
        file="benchmark/between_steps.py",
        removed='            loop.numbers.last_finite = state.get("last_finite")\n',
        instead="            pass\n",
        test=f"{BAD}::test_no_checkpoint_holds_it_and_again_it_ends_the_same_way",
    ),
    Protection(
        promise="all processes of a cell end by the same step",
        file="benchmark/step_numbers.py",
        removed="            dist.all_reduce(numbers)\n",
        instead="            pass\n",
        test=f"{BAD}::test_two_processes_end_by_the_same_step_whoever_has_the_image",
    ),
    Protection(
        promise="a cell that diverged is failed, the others go on, and again it ends the same way",
        file="benchmark/between_steps.py",
        removed="        loop.numbers.check(loop)\n",
        instead="        pass\n",
        test="tests/benchmark/test_run_endings.py::test_a_failed_cell_is_recorded_and_the_others_go_on",
    ),
    Protection(
        promise="logits that are not finite are not counted as predictions",
        file="benchmark/classification.py",
        removed="    if bad:\n",
        instead="    if False:\n",
        test=f"{BAD}::test_logits_that_are_not_finite_are_refused_by_their_images",
    ),
    Protection(
        promise="predictions are as many as the images",
        file="benchmark/classification.py",
        removed="    if len(finite) != len(image_ids):\n",
        instead="    if False:\n",
        test=f"{BAD}::test_logits_that_are_not_finite_are_refused_by_their_images",
    ),
    Protection(
        promise="features that are not finite are neither trained nor measured on",
        file="benchmark/probe.py",
        removed="    check_images(is_finite(features), images.image_ids, ",
        instead="    (lambda *_, **__: None)(is_finite(features), images.image_ids, ",
        test=f"{BAD}::test_features_that_are_not_finite_are_refused_by_their_images",
    ),
    Protection(
        promise="k-means ends where its objective is not finite",
        file="benchmark/fitting.py",
        removed="    if not math.isfinite(iteration.objective):\n",
        instead="    if False:\n",
        test=f"{BAD}::test_an_objective_of_k_means_that_is_not_finite_ends_the_fit",
    ),
    Protection(
        promise="a record holds no NaN",
        file="protocols/frozen.py",
        removed=", allow_inf_nan=False)",
        instead=")",
        test=f"{BAD}::test_no_record_holds_a_number_that_is_none",
    ),
    Protection(
        promise="out of memory ends with the micro-batch that would fit",
        file="benchmark/recipe.py",
        removed="        except RanOutOfMemory as error:\n",
        instead="        except ZeroDivisionError as error:\n",
        test=f"{MEMORY}::test_it_ends_with_the_micro_batch_that_fits_and_trains_the_same_with_it",
    ),
    Protection(
        promise="what would fit keeps mixing groups whole",
        file="benchmark/out_of_memory.py",
        removed=", group=group)",
        instead=")",
        test=f"{MEMORY}::test_groups_that_mixing_needs_are_not_parted",
    ),
    Protection(
        promise="a reading process that hangs is an error, not a wait",
        file="benchmark/readers.py",
        removed="        timeout=READER_SECONDS if workers else 0,\n",
        instead="",
        test=f"{WAITS}::test_a_reading_process_that_hangs_is_named_and_ended",
    ),
    Protection(
        promise="reading processes that hang are ended",
        file="benchmark/readers.py",
        removed="                one.kill()\n",
        instead="                one.terminate()\n",
        test=f"{WAITS}::test_a_reading_process_that_hangs_is_named_and_ended",
    ),
    Protection(
        promise="a reading process that is killed is an error with its process id",
        file="benchmark/readers.py",
        removed="        if dead is not None:\n",
        instead="        if False:\n",
        test=f"{WAITS}::test_a_reading_process_that_is_killed_is_named",
    ),
    Protection(
        promise="a process at a shard that hangs is an error",
        file="benchmark/shard_processes.py",
        removed=", timeout=SHARD_SECONDS)",
        instead=")",
        test=f"{WAITS}::test_a_process_at_a_shard_that_hangs_is_named_and_ended",
    ),
    Protection(
        promise="a training process that hangs ends the others",
        file="benchmark/process_group.py",
        removed="        timeout=TIMEOUT,\n",
        instead="",
        test=f"{WAITS}::test_a_process_that_hangs_in_a_sum_ends_the_other",
    ),
    Protection(
        promise="no process of a cell waits for ever for another",
        file="benchmark/peers.py",
        removed="            if time.monotonic() > deadline:\n",
        instead="            if False:\n",
        test=f"{WAITS}::test_nobody_waits_for_ever_for_another_process",
    ),
    Protection(
        promise="an evaluation is of exactly its images, whatever reads them",
        file="benchmark/classification.py",
        removed="    for span in spans:\n        found",
        instead="    for span in spans[: len(spans) - (workers > 1)]:\n        found",
        test="tests/benchmark/test_exactly_n.py",
    ),
)
