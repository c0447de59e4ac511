"""The chat annotator against a real HTTP server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server

from coreg_ray.annotation import chat
from coreg_ray.annotation.chat import ChatAnnotator, check_upload, vote_of
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.config import AnnotatorConfig
from coreg_ray.errors import UserError

pytest.importorskip("openai")

WORDS = Vocabulary((("cat", "kitty"), ("dog",)), ("Which of {}?", "Name one of {}."))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)


def annotator(address: str, **settings: Any) -> ChatAnnotator:
    config = AnnotatorConfig(kind="chat", model="m", endpoint=address, allow_upload=True, timeout_s=1, **settings)
    return ChatAnnotator(config, WORDS)


def batch(count: int) -> dict[str, Any]:
    """Dark and bright pictures in turn: cat, dog, cat, ..."""
    images = np.stack([np.full((32, 32, 3), 255 * (number % 2), np.uint8) for number in range(count)])
    return {"image_id": np.array([str(number) for number in range(count)], dtype=object), "image": images}


def test_every_question_is_a_vote_and_costs_are_counted() -> None:
    with chat_server() as server:
        answered = annotator(server.address, concurrency=3)(batch(6))
    assert answered["votes"].tolist() == [[0, 0], [1, 1]] * 3
    assert answered["answers"][1].tolist() == ["dog", "dog"]
    assert (answered["requests"].sum(), answered["input_tokens"].sum(), answered["output_tokens"].sum()) == (
        12,
        120,
        24,
    )
    assert server.requests == 12
    assert 1 < server.most_at_once <= 3


@pytest.mark.parametrize("faults", [["429", "500", "503"], ["truncated", "truncated"], ["slow"], ["empty"]])
def test_passing_faults_are_overcome(faults: list[str]) -> None:
    with chat_server(*faults) as server:
        answered = annotator(server.address)(batch(2))
    assert answered["votes"].tolist() == [[0, 0], [1, 1]]
    assert answered["requests"].sum() == server.requests == 4 + len(faults)


def test_nonsense_is_no_vote() -> None:
    with chat_server(answer="I would rather talk about the weather") as server:
        assert annotator(server.address)(batch(1))["votes"].tolist() == [[-1, -1]]


def test_a_spent_budget_stops_cleanly_and_leaves_the_rest_for_later() -> None:
    with chat_server() as server:
        asked = annotator(server.address, max_requests=7)
        answered = asked(batch(5))
        assert len(answered["votes"]) == 3
        assert len(asked(batch(5))["votes"]) == 0
    assert server.requests == 6


def test_retries_count_against_the_budget() -> None:
    with chat_server(*["500"] * 100) as server:
        answered = annotator(server.address, max_requests=5, retries=50)(batch(4))
        assert len(answered["votes"]) == 0
        assert server.requests <= 5


def test_a_dead_server_ends_the_questions() -> None:
    with chat_server(*["500"] * 1000) as server:
        answered = annotator(server.address, retries=1, concurrency=1)(batch(20))
        assert len(answered["votes"]) == 0
        assert server.requests == 10  # five images with one retry each


def test_a_refusal_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-value")
    with chat_server("401") as server, pytest.raises(UserError, match="status 401") as refusal:
        annotator(server.address, concurrency=1)(batch(1))
    assert server.keys == {"Bearer secret-value"}
    assert "secret-value" not in str(refusal.value)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("3600", 30, 30), ("", 0, 0.01), ("Wed, 21 Oct 2026 07:28:00 GMT", 0, 0.01)],
)
def test_a_server_is_given_the_time_it_asks_for(header: str, least: float, most: float) -> None:
    import openai

    async def ask(address: str) -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            await annotator(address)._send(client, "?", chat._data_url(batch(1)["image"][0]))

    with chat_server("429", retry_after=header) as server, pytest.raises(openai.RateLimitError) as refusal:
        asyncio.run(ask(server.address))
    assert least <= chat._wait_s(1, refusal.value) <= most


def test_uploads_need_consent_and_an_address() -> None:
    with pytest.raises(UserError, match=r"sent to example\.org:8000; agree with --annotator.allow_upload true"):
        check_upload(AnnotatorConfig(kind="chat", endpoint="http://user:pw@example.org:8000/v1"))
    with pytest.raises(UserError, match="is no address"):
        check_upload(AnnotatorConfig(kind="chat", endpoint="example.org", allow_upload=True))
    with pytest.raises(ValueError, match=r"needs annotator\.endpoint"):
        AnnotatorConfig(kind="chat")


@pytest.mark.parametrize(
    ("answer", "vote"),
    [
        ("cat", 0),
        (" The Dog. ", 1),
        ("kitty", 0),
        ("It is a dog, clearly.", 1),
        ("a cat or a dog", -1),
        ("dgo", -1),
        ("kittyy", 0),
        ("dogma", -1),
        ("", -1),
        ("bird", -1),
    ],
)
def test_answers_become_votes(answer: str, vote: int) -> None:
    assert vote_of(answer, WORDS) == vote


@pytest.mark.parametrize(
    ("class_names", "answer", "vote"),
    [
        ("C, C++, C#", " c ", 0),
        ("C, C++, C#", "C++", 1),
        ("C, C++, C#", '"C#".', 2),
        ("C, C++, C#", "C--", -1),
        ("C, C++, Java", "Unlike C, this is Java", -1),
        ("C, C++, Java", "It is Java.", 2),
        ("🐱, 🐶", "🐱", 0),
        ("🐱, 🐶", "", -1),
        ("dog, hot dog", "It is a hot dog.", 1),
        ("dog, hot dog", "It is a dog.", 0),
        ("dog, hot dog", "A dog beside a hot dog", -1),
        ("dog, hot dog, hot-dog", "It is a hot dog, I think.", -1),
        ("hot dog, dog house", "a hot dog house", -1),
    ],
)
def test_names_that_resemble_each_other_are_told_apart(class_names: str, answer: str, vote: int) -> None:
    words = Vocabulary(tuple((name,) for name in class_names.split(", ")), ("{}?",))
    assert vote_of(answer, words) == vote
