"""Train a config in one of several CPU processes; started by torchrun from test_processes.py.

accelerate 1.15 turns on FSDP for accelerators only, so what its config would set is set by hand here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType

from ultragist_rag.training.config import TrainConfig
from ultragist_rag.training.loop import Trainer


def main(path: str, kind: str, stop_after: str) -> None:
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    if kind == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=True, cpu_ram_efficient_loading=True
        )
        accelerator.state.fsdp_plugin = plugin
        PartialState().distributed_type = DistributedType.FSDP
    trainer = Trainer(TrainConfig.model_validate_json(Path(path).read_text(encoding="utf-8")))
    trainer.run(int(stop_after))
    assert trainer.accelerator.is_fsdp2 == (kind == "fsdp")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
