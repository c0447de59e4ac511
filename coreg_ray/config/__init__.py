"""The configuration: its sections, the tree they form, what older versions wrote, its texts."""

from coreg_ray.config.method import MethodConfig, MethodSettings
from coreg_ray.config.outputs import CheckpointConfig, ExportConfig, ReportConfig
from coreg_ray.config.sections import (
    AnnotatorConfig,
    CandidatesConfig,
    ClusterConfig,
    Section,
    SourceConfig,
    TestConfig,
)
from coreg_ray.config.student import StudentConfig
from coreg_ray.config.tree import Config

__all__ = [
    "AnnotatorConfig",
    "CandidatesConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "ExportConfig",
    "MethodConfig",
    "MethodSettings",
    "ReportConfig",
    "Section",
    "SourceConfig",
    "StudentConfig",
    "TestConfig",
]
