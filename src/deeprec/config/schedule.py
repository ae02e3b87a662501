"""Section of the schedule by which training runs begin by themselves."""

from __future__ import annotations

from pydantic import Field, field_validator

from deeprec.config.section import Section


class ScheduleConfig(Section):
    """When training runs begin, and which KFP server runs them."""

    name: str = Field("deeprec-training", min_length=1)
    """Name of the recurring run, and of the pipeline and the experiment on KFP's server."""
    cron: str = "0 3 * * 0"
    """When a run begins, as cron says it: five fields, or six with seconds first."""
    timezone: str = "UTC"
    """Time zone in which `cron` is meant, such as Europe/Lisbon."""
    server_timezone: str = "UTC"
    """Time zone in which KFP's server reads every schedule: its `CRON_SCHEDULE_TIMEZONE`."""
    host: str = ""
    """Address of KFP's API; empty is what the environment or the cluster says."""
    namespace: str = ""
    """KFP's namespace with profiles; empty without them."""

    @field_validator("cron")
    @classmethod
    def _five_or_six_fields(cls, cron: str) -> str:
        if len(cron.split()) not in (5, 6):
            raise ValueError(
                f"{len(cron.split())} fields, and cron has five (minute, hour, day of the month, month, day of the "
                f"week) or six with seconds first; write for example '0 3 * * 0'"
            )
        return cron
