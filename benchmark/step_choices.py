"""How a step is computed: a run's choices that move its numbers by rounding at most.

    activation checkpointing    the backward pass computes each block again, and so keeps less of it; exact
    compile                     torch.compile of the blocks; rounds differently, draws the same drop path

The compiler works when a step first runs, so it is tried on the first batch before training begins. Where it
fails, one warning says why and the whole training is eager: never a part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmark.batches import Batch
from benchmark.runtime import Runtime

log = logging.getLogger(__name__)
# Blocks share their code, and each rate of drop path is another graph of it; CAE runs them in three ways.
MOST_GRAPHS = 256


@contextmanager
def computed_as_chosen(
    objective: nn.Module, first_batch: Callable[[], Batch], runtime: Runtime
) -> Iterator[Runtime]:
    """`objective` trains inside as `runtime` says, and eagerly again afterwards; gives what truly runs.

    `first_batch` gives a micro-batch, of the shapes that all have. Weights and their gradients are left as
    they are; random numbers are drawn, which the engine seeds anew at each step.
    """
    if runtime.activation_checkpointing:
        objective.recompute_blocks()  # type: ignore[operator]
    if not runtime.compile:
        yield runtime
        return
    import torch._dynamo.config
    import torch._inductor.config

    with (
        torch._dynamo.config.patch(
            recompile_limit=MOST_GRAPHS,
            accumulated_recompile_limit=MOST_GRAPHS,
            fail_on_recompile_limit_hit=True,
        ),
        # Random numbers as eager code draws them; no more compilers than the cell has threads.
        torch._inductor.config.patch(fallback_random=True, compile_threads=runtime.threads),
    ):
        objective.compile_blocks()  # type: ignore[operator]
        fault = _fault_of_compiler(objective, first_batch(), runtime)
        if fault is not None:
            log.warning("--compile: the compiler failed, so this cell trains without it: %s", fault)
        try:
            with torch.compiler.set_stance("default" if fault is None else "force_eager"):
                yield runtime.model_copy(update={"compile": fault is None})
        finally:
            _make_eager(objective)


def forward_and_backward(objective: nn.Module, batch: Batch, runtime: Runtime) -> None:
    """The gradients of one micro-batch, added to those that are there, in the runtime's precision."""
    objective.to(runtime.device).train()
    batch = {name: value.to(runtime.device) for name, value in batch.items()}
    with torch.autocast(runtime.device, torch.bfloat16, enabled=runtime.precision == "bf16"):
        loss: Tensor = objective.loss(batch)  # type: ignore[operator]
    loss.backward()


def _fault_of_compiler(objective: nn.Module, batch: Batch, runtime: Runtime) -> str | None:
    """Forward and backward once; what the compiler says if it fails, None if all was compiled."""
    try:
        forward_and_backward(objective, batch, runtime)
    except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    finally:
        objective.zero_grad(set_to_none=True)
    return None


def _make_eager(objective: nn.Module) -> None:
    """Undo `compile_blocks`, which torch has no public way for: what is measured is measured eagerly."""
    for module in objective.modules():
        module._compiled_call_impl = None
        for name in [
            name for name, value in vars(module).items() if hasattr(value, "_torchdynamo_orig_callable")
        ]:
            delattr(module, name)  # the method of its class is behind it
