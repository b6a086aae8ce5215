"""`gateway.openai.progress`: the comments for a waiting client."""

from __future__ import annotations

import pytest

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
from gateway.openai.progress import sentence


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (Preparing(), "preparing"),
        (LoadingTokenizer("tiny"), "fetching tiny"),
        (LoadingModel("tiny"), "loading tiny"),
        (Downloading("tiny", 40, 100), "downloading tiny: 40 %"),
        (Downloading("tiny", 0, 0), "downloading tiny: 0 %"),
        (Reported("placing tiny on 2 nodes"), "placing tiny on 2 nodes"),
        (Queued(1), "1 answer is ahead of yours"),
        (Queued(3), "3 answers are ahead of yours"),
        (ReadingPrompt(9), "reading a prompt of 9 tokens"),
    ],
)
def test_progress_is_written_in_words(progress: Progress, words: str) -> None:
    assert sentence(progress) == words
