"""The names of `django.tasks`, of Django 6.0 and later, or of the package `django-tasks`, for older ones."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = [
    "BaseTaskBackend",
    "DoesNotExist",
    "TaskClass",
    "TaskContext",
    "TaskError",
    "TaskResult",
    "TaskResultStatus",
    "backends",
    "normalize_json",
    "signals",
]

_ROOT = "django.tasks" if find_spec("django.tasks") is not None else "django_tasks"


def _part(name: str) -> ModuleType:
    return import_module(f"{_ROOT}.{name}" if name else _ROOT)


backends: Any = _part("").task_backends
BaseTaskBackend: Any = _part("backends.base").BaseTaskBackend
TaskClass: Any = _part("base").Task
TaskContext: Any = _part("base").TaskContext
TaskError: Any = _part("base").TaskError
TaskResult: Any = _part("base").TaskResult
TaskResultStatus: Any = _part("base").TaskResultStatus
normalize_json: Any = _part("base").normalize_json
signals: Any = _part("signals")
DoesNotExist: Any = _part("exceptions").TaskResultDoesNotExist
