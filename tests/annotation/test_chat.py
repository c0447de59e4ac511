"""The chat annotator against a real HTTP server that misbehaves on purpose."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server

from coreg_ray.annotation import chat
from coreg_ray.annotation.chat import ChatAnnotator
from coreg_ray.annotation.chat_client import check_upload, key_variable, wait_asked_s
from coreg_ray.annotation.chat_votes import vote_of
from coreg_ray.annotation.ledger import Usage
from coreg_ray.annotation.vocabulary import Vocabulary
from coreg_ray.config import AnnotatorConfig, Config
from coreg_ray.config.older import completed
from coreg_ray.errors import UserError

pytest.importorskip("openai")

WORDS = Vocabulary((("cat", "kitty"), ("dog",)), ("Which of {}?", "Name one of {}."))


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_FIRST_WAIT_S", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def annotator(address: str, asked: int = 0, proven: bool = False, **settings: Any) -> ChatAnnotator:
    config = AnnotatorConfig(kind="chat", model="m", endpoint=address, allow_upload=True, timeout_s=1, **settings)
    return ChatAnnotator(config, WORDS, asked, proven)


def batch(count: int) -> dict[str, Any]:
    """Dark and bright pictures in turn: cat, dog, cat, ..."""
    images = np.stack([np.full((32, 32, 3), 255 * (number % 2), np.uint8) for number in range(count)])
    return {"image_id": np.array([str(number) for number in range(count)], dtype=object), "image": images}


def test_every_question_is_a_vote_and_costs_are_counted() -> None:
    with chat_server() as server:
        answers = annotator(server.address, concurrency=3)(batch(6))
    assert answers.answered["votes"].tolist() == [[0, 0], [1, 1]] * 3
    assert answers.answered["answers"][1].tolist() == ["dog", "dog"]
    assert answers.usage == Usage(12, 120, 24)
    assert (answers.notes, answers.error, len(answers.refused["image_id"])) == ((), "", 0)
    assert server.requests == 12
    assert 1 < server.most_at_once <= 3


@pytest.mark.parametrize("faults", [["429", "500", "503"], ["truncated", "truncated"], ["slow"], ["empty"]])
def test_passing_faults_are_overcome(faults: list[str]) -> None:
    with chat_server(*faults) as server:
        answers = annotator(server.address)(batch(2))
    assert answers.answered["votes"].tolist() == [[0, 0], [1, 1]]
    assert answers.usage.requests == server.requests == 4 + len(faults)


def test_nonsense_is_no_vote() -> None:
    with chat_server(answer="I would rather talk about the weather") as server:
        assert annotator(server.address)(batch(1)).answered["votes"].tolist() == [[-1, -1]]


def test_a_spent_budget_stops_cleanly_and_leaves_the_rest_for_later() -> None:
    with chat_server() as server:
        asked = annotator(server.address, max_requests=7)
        answers = asked(batch(5))
        assert len(answers.answered["votes"]) == 3
        assert "annotator.max_requests=7 is spent" in answers.notes[0]
        assert len(asked(batch(5)).answered["votes"]) == 0
    assert server.requests == 6


def test_what_earlier_runs_spent_counts_against_the_budget() -> None:
    with chat_server() as server:
        answers = annotator(server.address, asked=5, max_requests=7)(batch(5))
    assert len(answers.answered["votes"]) == 1
    assert server.requests == 2


def test_retries_count_against_the_budget() -> None:
    with chat_server(*["500"] * 100) as server:
        answers = annotator(server.address, max_requests=5, retries=50)(batch(4))
        assert len(answers.answered["votes"]) == 0
        assert server.requests <= 5


@pytest.mark.parametrize("fault", ["500", "429"])
def test_a_dead_server_ends_the_questions_and_its_words_are_said_once(fault: str) -> None:
    with chat_server(*[fault] * 1000, words="come back tomorrow") as server:
        asked = annotator(server.address, retries=1, concurrency=1)
        answers = asked(batch(20))
        assert len(answers.answered["votes"]) == 0
        assert answers.usage.requests == server.requests == 10  # five images with one retry each
        assert asked(batch(20)).notes == ()
    assert answers.error == ""
    assert len(answers.notes) == 2  # of the first image, and that it goes no further
    assert all(f"status {fault}: come back tomorrow" in note for note in answers.notes)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_image_that_the_server_refuses_is_a_reject_with_its_words(status: int) -> None:
    with chat_server(refuses={"dog": status}, words="the picture is not allowed") as server:
        answers = annotator(server.address, concurrency=1)(batch(14))
    assert answers.answered["image_id"].tolist() == [str(number) for number in range(0, 14, 2)]
    assert answers.refused["image_id"].tolist() == [str(number) for number in range(1, 14, 2)]
    assert f"status {status}: the picture is not allowed" in answers.refused["reason"][0]
    assert "image" not in answers.refused
    assert answers.error == ""
    assert answers.usage.requests == server.requests == 7 * 2 + 7


def test_a_server_that_refuses_every_image_of_the_first_block_is_not_taken_at_its_word() -> None:
    with chat_server(refuses={"cat": 400, "dog": 400}, words="`max_tokens` is not supported") as server:
        answers = annotator(server.address)(batch(6))
        later = annotator(server.address, proven=True)(batch(6))
    assert "no image was answered, 6 were refused" in answers.error
    assert "`max_tokens` is not supported" in answers.error
    assert len(answers.refused["image_id"]) == 0
    assert len(later.refused["image_id"]) == 6


@pytest.mark.parametrize("status", ["401", "403", "404"])
def test_a_refusal_is_the_users_to_mend_and_keeps_what_was_answered(
    status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-value")
    with chat_server(words="no account of secret-value") as server:
        asked = annotator(server.address, concurrency=1, key_variable="MY_KEY")
        server.faults = ["", "", "", "", status]
        answers = asked(batch(9))
        assert server.requests == 5
        assert len(asked(batch(9)).answered["votes"]) == 0
        assert server.requests == 5
    assert len(answers.answered["votes"]) == 2
    assert answers.usage.requests == 5
    assert f"status {status}: no account of ***" in answers.error
    assert "secret-value" not in answers.error
    assert "annotator.model=m and the key in $MY_KEY" in answers.error


def test_the_key_of_one_provider_is_not_sent_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-value")
    with chat_server("401") as server:
        answers = annotator(server.address, concurrency=1)(batch(1))
        assert server.keys == {"Bearer none"}
        assert "secret-value" not in server.heard.values()
        assert "name the variable that holds it with --annotator.key_variable" in answers.error
        annotator(server.address, key_variable="OPENAI_API_KEY")(batch(1))
        assert "Bearer secret-value" in server.keys


@pytest.mark.parametrize(
    ("endpoint", "named", "variable"),
    [
        ("https://api.openai.com/v1", None, "OPENAI_API_KEY"),
        ("https://API.OpenAI.com:443/v1", None, "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", None, None),
        ("https://api.openai.com.example.org/v1", None, None),
        ("https://api.openai.com@example.org/v1", None, None),
        ("http://localhost:8000/v1", None, None),
        ("http://localhost:8000/v1", "KEY", "KEY"),
        ("https://api.openai.com/v1", "KEY", "KEY"),
    ],
)
def test_whose_key_goes_where(endpoint: str, named: str | None, variable: str | None) -> None:
    assert key_variable(AnnotatorConfig(kind="chat", endpoint=endpoint, key_variable=named)) == variable


def test_configurations_of_older_versions_are_still_read() -> None:
    tree = Config().settings()
    tree["annotator"]["key_variable"] = "OPENAI_API_KEY"
    assert Config.model_validate(completed(tree)).annotator.key_variable == "OPENAI_API_KEY"


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_no_redirect_is_followed(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-value")
    with chat_server() as other:
        elsewhere = f"{other.address}/chat/completions"
        with chat_server(status, headers={"Location": elsewhere}) as server:
            answers = annotator(server.address, concurrency=1, key_variable="MY_KEY")(batch(1))
        assert (server.requests, other.requests, other.keys) == (1, 0, set())
    assert f"redirects to {elsewhere}" in answers.error


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7, 7),
        ({"retry-after": "nan"}, 0, 0),
        ({"retry-after": "-3"}, 0, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:20 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 20, 20),
        ({"retry-after": format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)}, 3000, 3600),
        ({"retry-after": "tomorrow"}, 0, 0),
        ({}, 0, 0),
    ],
)
def test_a_server_is_given_the_time_it_asks_for(headers: dict[str, str], least: float, most: float) -> None:
    assert least <= wait_asked_s(headers) <= most
    assert chat._wait_s(1, wait_asked_s(headers)) <= 30


def test_an_attempt_waits_as_long_as_the_server_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(chat.asyncio, "sleep", sleep)
    with chat_server("429", headers={"retry-after-ms": "2500"}) as server:
        annotator(server.address, concurrency=1)(batch(1))
    assert waited == [2.5]


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
