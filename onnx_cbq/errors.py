"""Every error that onnx-cbq raises on purpose.

```
OnnxCbqError              exit code 1
├── ConfigError           a setting is outside what is possible
├── ModelError            the model cannot be read, or cannot be handled
│   └── UnsupportedOperatorError   no gradient rule, or no function in torch, for an operator
├── ArchiveError          an archive cannot be restored
├── CalibrationError      a card, its source or a sample is wrong
├── WorkerError           workers cannot be reached, or do not fit
├── OutputError           a result cannot be written
├── StoppedError          exit code 130: Ctrl-C or SIGTERM
└── VerificationError     exit code 3: the result failed its own check
```

A message is one line: what is wrong, where, what was expected, what came, and what to do about it.
"""

from __future__ import annotations


class OnnxCbqError(Exception):
    """Base of all errors with a message meant for the user; `exit_code` is what the command returns."""

    exit_code = 1


class ConfigError(OnnxCbqError):
    """A setting is outside what is possible."""


class ModelError(OnnxCbqError):
    """The model cannot be read, or holds something that cannot be handled."""


class UnsupportedOperatorError(ModelError):
    """An operator has no gradient rule, or no function in torch, and lies where one is needed."""


class ArchiveError(OnnxCbqError):
    """An archive is none, or is damaged."""


class CalibrationError(OnnxCbqError):
    """A calibration card, its source, or one of its samples is wrong."""


class WorkerError(OnnxCbqError):
    """Workers of another process or machine cannot be reached, do not fit, or are lost."""


class OutputError(OnnxCbqError):
    """A result cannot be written."""


class StoppedError(OnnxCbqError):
    """The user, or the system, ended the command."""

    exit_code = 130


class VerificationError(OnnxCbqError):
    """The result failed its own check, or missed a limit that was asked for."""

    exit_code = 3
