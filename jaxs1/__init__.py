"""s1 (simple test-time scaling) in JAX: train, decode with a thinking budget, evaluate, curate.

    from jaxs1 import LLM, ThinkingParams

    llm = LLM("Qwen/Qwen2.5-0.5B-Instruct")
    print(llm.chat("How many primes are below 100?", thinking=ThinkingParams(max=2000)).answer)

`import jaxs1` is cheap: a name of `__all__` is imported from its module when it is first used.
`jaxs1.train`, `jaxs1.grpo`, `jaxs1.evaluate`, `jaxs1.curate` and `jaxs1.traces` are functions. The
modules of the same names are reached by `from jaxs1.train import ...` and `python -m jaxs1.train`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from jaxs1.config import UserError as UserError
    from jaxs1.curate import CurateConfig as CurateConfig
    from jaxs1.curate import curate as curate
    from jaxs1.data.config import DataConfig as DataConfig
    from jaxs1.decoding.loading import ParallelConfig as ParallelConfig
    from jaxs1.decoding.outputs import Completion as Completion
    from jaxs1.decoding.params import Delimiters as Delimiters
    from jaxs1.decoding.params import SamplingParams as SamplingParams
    from jaxs1.decoding.params import ThinkingParams as ThinkingParams
    from jaxs1.decoding.pieces import Piece as Piece
    from jaxs1.decoding.scheduler import Limits as Limits
    from jaxs1.distillation.config import PriceConfig as PriceConfig
    from jaxs1.distillation.config import TeacherEndpoint as TeacherEndpoint
    from jaxs1.distillation.config import TeacherSampling as TeacherSampling
    from jaxs1.distillation.config import TracesConfig as TracesConfig
    from jaxs1.evaluate import EvaluateConfig as EvaluateConfig
    from jaxs1.evaluate import evaluate as evaluate
    from jaxs1.evaluation.methods import SweepConfig as SweepConfig
    from jaxs1.grpo import grpo as grpo
    from jaxs1.llm import LLM as LLM
    from jaxs1.llm import load_model as load_model
    from jaxs1.model.config import ComputeConfig as ComputeConfig
    from jaxs1.model.config import LoraConfig as LoraConfig
    from jaxs1.model.config import MeshConfig as MeshConfig
    from jaxs1.rl.config import BudgetsConfig as BudgetsConfig
    from jaxs1.rl.config import GrpoConfig as GrpoConfig
    from jaxs1.rl.config import HeldOutConfig as HeldOutConfig
    from jaxs1.rl.config import ObjectiveConfig as ObjectiveConfig
    from jaxs1.tasks.benchmarks import QuestionsConfig as QuestionsConfig
    from jaxs1.traces import traces as traces
    from jaxs1.train import train as train
    from jaxs1.training.config import CheckpointConfig as CheckpointConfig
    from jaxs1.training.config import DistributedConfig as DistributedConfig
    from jaxs1.training.config import LogConfig as LogConfig
    from jaxs1.training.config import OptimizerConfig as OptimizerConfig
    from jaxs1.training.config import TrainConfig as TrainConfig

#: Public name -> the module that defines it.
_EXPORTS = {
    "LLM": "jaxs1.llm",
    "ThinkingParams": "jaxs1.decoding.params",
    "SamplingParams": "jaxs1.decoding.params",
    "Delimiters": "jaxs1.decoding.params",
    "Completion": "jaxs1.decoding.outputs",
    "Piece": "jaxs1.decoding.pieces",
    "Limits": "jaxs1.decoding.scheduler",
    "ParallelConfig": "jaxs1.decoding.loading",
    "load_model": "jaxs1.llm",
    "train": "jaxs1.train",
    "TrainConfig": "jaxs1.training.config",
    "DataConfig": "jaxs1.data.config",
    "OptimizerConfig": "jaxs1.training.config",
    "LoraConfig": "jaxs1.model.config",
    "MeshConfig": "jaxs1.model.config",
    "ComputeConfig": "jaxs1.model.config",
    "CheckpointConfig": "jaxs1.training.config",
    "LogConfig": "jaxs1.training.config",
    "DistributedConfig": "jaxs1.training.config",
    "grpo": "jaxs1.grpo",
    "GrpoConfig": "jaxs1.rl.config",
    "BudgetsConfig": "jaxs1.rl.config",
    "ObjectiveConfig": "jaxs1.rl.config",
    "HeldOutConfig": "jaxs1.rl.config",
    "evaluate": "jaxs1.evaluate",
    "EvaluateConfig": "jaxs1.evaluate",
    "QuestionsConfig": "jaxs1.tasks.benchmarks",
    "SweepConfig": "jaxs1.evaluation.methods",
    "curate": "jaxs1.curate",
    "CurateConfig": "jaxs1.curate",
    "traces": "jaxs1.traces",
    "TracesConfig": "jaxs1.distillation.config",
    "TeacherEndpoint": "jaxs1.distillation.config",
    "TeacherSampling": "jaxs1.distillation.config",
    "PriceConfig": "jaxs1.distillation.config",
    "UserError": "jaxs1.config",
}
__all__ = ["__version__", *_EXPORTS]


class _Package(ModuleType):
    """This package. Importing the module jaxs1.train must not replace the function `train`."""

    def __getattr__(self, name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_EXPORTS[name]), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
