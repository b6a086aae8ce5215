"""Progress in words, as server-sent comments, which clients skip."""

from __future__ import annotations

from gateway.core.progress import (
    Downloading,
    LoadingModel,
    LoadingTokenizer,
    Preparing,
    Progress,
    Queued,
    ReadingPrompt,
    Reported,
)


def comment(progress: Progress) -> bytes:
    """Return progress as one comment of a stream."""
    return f": exobus {' '.join(sentence(progress).split())}\n\n".encode()


def sentence(progress: Progress) -> str:
    """Return progress in words."""
    match progress:
        case Preparing():
            return "preparing"
        case LoadingTokenizer(model_id):
            return f"fetching {model_id}"
        case LoadingModel(model_id):
            return f"loading {model_id}"
        case Downloading(model_id, done, total):
            return f"downloading {model_id}: {100 * done // max(total, 1)} %"
        case Reported(text):
            return text
        case Queued(ahead):
            return f"{ahead} answers are ahead of yours" if ahead > 1 else "1 answer is ahead of yours"
        case ReadingPrompt(tokens):
            return f"reading a prompt of {tokens} tokens"
