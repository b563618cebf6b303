"""Error codes: words, because they end in logs. `retryable` ones may succeed when the same is tried again."""

from __future__ import annotations

CODES: dict[str, str] = {
    "bad_envelope": "the parts of the message are not magic, header and payload as they should be",
    "bad_message": "the header is not a message of this protocol; the text names the field",
    "unknown_type": "no such message; newer clients may send what an older server does not know",
    "version": "the two sides speak different major versions",
    "hello_required": "anything before hello",
    "unauthorized": "a token or key is missing or wrong",
    "forbidden": "this role may not do this",
    "no_session": "there is no such session, or no longer",
    "bad_token": "the session exists, the token does not fit it",
    "not_owner": "another connection holds the session",
    "not_supported": "this server or model cannot do it",
    "invalid_argument": "a value is out of range or does not fit the state; the text says which",
    "text_too_long": "the captions together need more tokens than the model reads",
    "rejected_content": "the director has no words for this",
    "cancelled": "taken back by the client before it was shown",
    "busy": "all sessions are taken",
    "queue_full": "too many requests wait",
    "rate_limited": "too many requests a second",
    "out_of_memory": "the model ran out of memory; this session was closed, others go on",
    "model_loading": "the model is not ready yet",
    "model_failed": "the model process died or failed; it is started again from the last shot boundary",
    "snapshot_missing": "no such snapshot",
    "expired": "the session waited too long for its client",
    "closed": "the client asked for it",
    "time_limit": "the session has reached its longest time",
    "internal": "a defect of the server, with its log line",
    "shutting_down": "the server is about to stop",
}
"""Code -> meaning."""

RETRYABLE = frozenset(
    {
        "busy",
        "queue_full",
        "rate_limited",
        "out_of_memory",
        "model_loading",
        "model_failed",
        "internal",
        "shutting_down",
    }
)
