"""Chat annotators: any vision-language model behind the OpenAI-compatible HTTP interface, as vLLM and others serve it.

Every question template is put to the model once about every image; an answer becomes a vote if it names a class:
exactly, by another of its names, or closely; else it is "no vote". An image counts as annotated when all its questions
are answered; what a spent budget or a failing server leaves open is asked by the next run.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import io
import json
import logging
import os
import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreg_ray.errors import UserError

if TYPE_CHECKING:
    from coreg_ray.annotation.vocabulary import Vocabulary
    from coreg_ray.config import AnnotatorConfig

log = logging.getLogger(__name__)

NO_VOTE = -1
_CLOSE = 0.8  # difflib's ratio: a slip of a letter or two passes, another word does not
_AROUND = " \t\r\n.,:;!\"'`*"  # what models put around a name
_MAX_TOKENS = 32
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_FAILURES_IN_A_ROW = 5  # images, each after all its retries: then the server is taken for down


class Unanswered(Exception):
    """A question that got no answer: the budget is spent, or all attempts failed."""


def check_upload(config: AnnotatorConfig) -> str:
    """The host that images would be sent to.

    Raises:
        UserError: sending is not allowed, the address is none, or the client is not installed.
    """
    address = urlsplit(config.endpoint or "")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(f"annotator.endpoint={config.endpoint} is no address; give one like http://localhost:8000/v1")
    host = address.netloc.rsplit("@", 1)[-1]
    if not config.allow_upload:
        raise UserError(f"every image would be sent to {host}; agree with --annotator.allow_upload true")
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError("annotator.kind=chat needs `openai`: pip install 'coreg-ray[chat]'") from error
    return host


def vote_of(answer: str, words: Vocabulary) -> int:
    """The class that an answer names, or NO_VOTE.

    An exact name wins, then one that differs in punctuation alone; then the only class of which a name occurs as whole
    words; then the closest name. What two classes share without their punctuation (C, C++) names neither.
    """
    names = words.index()
    for exact in (answer.strip().lower(), answer.lower().strip(_AROUND)):
        if exact in names:
            return names[exact]
    index: dict[str, int] = {}
    for name, number in names.items():
        if plain := _plain(name):
            index[plain] = number if index.get(plain, number) == number else NO_VOTE
    plain_answer = _plain(answer)
    if plain_answer in index:
        return index[plain_answer]
    named = _named(plain_answer, index)
    if len(named) == 1:
        return named.pop()
    close = difflib.get_close_matches(plain_answer, index, n=1, cutoff=_CLOSE) if not named else []
    return index[close[0]] if close else NO_VOTE


def _named(plain_answer: str, index: dict[str, int]) -> set[int]:
    """The classes of which a name occurs as whole words, not only inside a longer name ("dog" in "hot dog")."""
    text = f" {plain_answer} "
    places = [
        (match.start(), match.start() + len(name), number)
        for name, number in index.items()
        if f" {name} " in text
        for match in re.finditer(f"(?= {name} )", text)
    ]
    return {
        number
        for start, end, number in places
        if not any(first <= start and end <= last and last - first > end - start for first, last, _ in places)
    }


def _plain(text: str) -> str:
    """Lower case, no punctuation, single spaces, no article in front."""
    plain = " ".join(re.sub(r"[\W_]+", " ", text.lower()).split())
    return re.sub(r"^(a|an|the) ", "", plain)


@dataclass
class Usage:
    """What was spent since the last look."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class ChatAnnotator:
    """Asks a chat model every question about every image, a bounded number of requests at a time.

    Attributes:
        config: endpoint, model, limits.
        words: classes, and questions in place of prompts.
        asked: requests sent so far, failed ones included.
    """

    config: AnnotatorConfig
    words: Vocabulary
    asked: int = 0
    _reserved: int = 0  # requests that images under way may still send
    _usage: Usage = field(default_factory=Usage)
    _failed_in_a_row: int = 0

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Replace `image` (B, S, S, 3) uint8 by `votes` (b, P) int32, `answers` (b, P) and what was spent.

        Rows that got no answer are left out.

        Raises:
            UserError: the server refuses the key, the model or the request as such.
        """
        answers = asyncio.run(self._ask_all(batch["image"]))
        done = np.array([answer is not None for answer in answers], dtype=bool)
        given = [answer for answer in answers if answer is not None]
        votes = [[vote_of(text, self.words) for text in texts] for texts in given]
        rest = {name: values[done] for name, values in batch.items() if name != "image"}
        shape = (len(given), len(self.words.prompts))
        spent = {name: np.zeros(len(given), dtype=np.int64) for name in vars(self._usage)}
        if given:  # what the whole batch cost stands in its first row
            for name, value in vars(self._usage).items():
                spent[name][0] = value
            self._usage = Usage()
        texts = np.empty(shape, dtype=object)
        texts[:] = given if given else texts
        return {**rest, "votes": np.array(votes, dtype=np.int32).reshape(shape), "answers": texts, **spent}

    async def _ask_all(self, images: NDArray[np.uint8]) -> list[list[str] | None]:
        import openai

        key = os.environ.get(self.config.key_variable) or "none"  # a server of one's own wants none
        limit = asyncio.Semaphore(self.config.concurrency)
        async with openai.AsyncOpenAI(
            base_url=self.config.endpoint, api_key=key, max_retries=0, timeout=self.config.timeout_s
        ) as client:
            return list(await asyncio.gather(*(self._ask_about(client, limit, image) for image in images)))

    async def _ask_about(self, client: Any, limit: asyncio.Semaphore, image: NDArray[np.uint8]) -> list[str] | None:
        """The answers (P) about one image, or None."""
        async with limit:  # an image at a time in each slot, so that a spent budget leaves few images half asked
            questions = self._questions()
            if not self._affordable(len(questions)) or self._failed_in_a_row >= _FAILURES_IN_A_ROW:
                return None
            self._reserved += len(questions)
            answers: list[str] = []
            try:
                for question in questions:
                    self._reserved -= 1
                    answers.append(await self._ask(client, question, _data_url(image)))
            except Unanswered as reason:
                self._reserved -= len(questions) - len(answers) - 1
                log.warning("an image stays without an answer: %s", reason)
                return None
            self._failed_in_a_row = 0
            return answers

    def _questions(self) -> list[str]:
        class_names = ", ".join(self.words.shown)
        return [question.replace("{}", class_names) for question in self.words.prompts]

    async def _ask(self, client: Any, question: str, picture: str) -> str:
        """One answer, after as many attempts as are allowed."""
        import openai

        passing = (
            *(openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError),  # time-outs are the latter
            *(openai.APIResponseValidationError, json.JSONDecodeError, _Broken),
        )
        problem: Exception | None = None
        for attempt in range(self.config.retries + 1):
            if attempt and not self._affordable(1):
                raise Unanswered(f"the budget of annotator.max_requests={self.config.max_requests} is spent")
            if attempt:
                await asyncio.sleep(_wait_s(attempt, problem))
            self.asked += 1
            self._usage.requests += 1
            try:
                return self._read(await self._send(client, question, picture))
            except passing as error:
                problem = error
            except openai.APIStatusError as error:
                raise UserError(
                    f"{self.config.endpoint} refuses with status {error.status_code}; check the address, "
                    f"annotator.model={self.config.model} and the key in ${self.config.key_variable}"
                ) from error
        self._failed_in_a_row += 1
        raise Unanswered(f"{self.config.retries + 1} attempts failed, the last with {type(problem).__name__}")

    async def _send(self, client: Any, question: str, picture: str) -> Any:
        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": picture}}]
        return await client.chat.completions.create(
            model=self.config.model,
            messages=[{"role": "user", "content": content}],
            max_tokens=_MAX_TOKENS,
            temperature=0,
        )

    def _read(self, reply: Any) -> str:
        """The text of a reply, whatever a server that speaks the protocol loosely sent."""
        try:
            text = reply.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            raise _Broken("a reply without choices") from error
        usage = getattr(reply, "usage", None)
        self._usage.input_tokens += getattr(usage, "prompt_tokens", 0) or 0
        self._usage.output_tokens += getattr(usage, "completion_tokens", 0) or 0
        return text if isinstance(text, str) else ""

    def _affordable(self, requests: int) -> bool:
        limit = self.config.max_requests
        return limit is None or self.asked + self._reserved + requests <= limit


class _Broken(Exception):
    """A reply that is none."""


def _wait_s(attempt: int, problem: Exception | None) -> float:
    """Seconds before the next attempt: what the server asks for, else doubling, spread so that not all come at once."""
    headers = getattr(getattr(problem, "response", None), "headers", {})
    try:
        asked = float(headers.get("retry-after", 0))
    except ValueError:
        asked = 0.0
    backoff = _FIRST_WAIT_S * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.0)
    return min(_LONGEST_WAIT_S, max(asked, backoff))


def _data_url(image: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
