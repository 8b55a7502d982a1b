"""Limits and their events, in words."""

from ledgerq.eventlog.events import Held, HoldReleased, LimitEvent, LimitsSet
from ledgerq.tools.console.output import local_time

__all__ = ["limits_text", "setting_text"]


def setting_text(setting: LimitsSet) -> str:
    """The limits themselves."""
    parts = [f"{setting.max_running} running"] if setting.max_running else []
    if setting.count:
        parts.append(f"{setting.count} in {setting.period_ms / 1000:g} s, {setting.burst} at once")
    return ", ".join(parts) or "no limits"


def limits_text(event: LimitEvent) -> str:
    """The text of an event of limits."""
    by = f" by {event.actor}: {event.reason}" if event.actor and event.reason else ""
    match event:
        case LimitsSet():
            return f"queue {event.queue}: {setting_text(event)}{by or ' as its program has it'}"
        case Held():
            return f"queue {event.queue} until {local_time(event.until_ms)}{by or ' as a handler asked for'}"
        case HoldReleased():
            return f"queue {event.queue}{by}"
