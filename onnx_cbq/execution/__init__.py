"""Where work over shards of samples runs: in this process, in worker processes, on a Dask cluster."""

from onnx_cbq.execution.engine import IN_PROCESS, Crew, Engine, InProcess, ModelFile, Place, Task, Work

__all__ = ["IN_PROCESS", "Crew", "Engine", "InProcess", "ModelFile", "Place", "Task", "Work"]
