"""How a session fares, in the protocol's words. Pure."""

from __future__ import annotations

from typing import Any

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.server.session import Session


def starving(session: Session, now: float) -> m.Starved | None:
    """Told once when the client's queue has run dry, with the reason."""
    if session.starved_told or not session.next_seq or session.pacing.lead_s(now) > 0 or session.paused:
        return None
    session.starved_told = True
    reason: Any = "model"
    if session.running is None and session.plan.empty and session.making is None:
        reason = "story"
    elif session.making is None and session.deadline(now) is None:
        reason = "credit"
    return m.Starved(session=session.name, since_ms=0.0, reason=reason)


def statistics(session: Session, now: float) -> m.Stats:
    """How the film runs."""
    times = sorted(session.chunk_ms) or [0.0]
    middle, high = times[len(times) // 2], times[min(len(times) - 1, int(0.95 * len(times)))]
    rate = 1000 * session.desk.facts.chunk_frames / middle if middle else 0.0
    lead = session.pacing.lead_s(now)
    return m.Stats(
        session=session.name, fps=round(rate, 1), chunk_ms_p50=round(middle, 1), chunk_ms_p95=round(high, 1),
        lead_ms=round(1000 * lead, 1), credit=session.pacing.credit_left,
        queue=session.pacing.queued, late=session.pacing.late,
    )  # fmt: skip
