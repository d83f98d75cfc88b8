"""The log for machines: one JSON object a line."""

from __future__ import annotations

import json
import logging


class Lines(logging.Formatter):
    """Log lines, one JSON object each. `record.told` joins the object."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            **(getattr(record, "told", None) or {"message": record.getMessage()}),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)
