"""Chat annotators: any vision-language model behind the OpenAI-compatible HTTP interface, as vLLM and others serve it.

Every question template is put to the model once about every image; an answer becomes a vote if it names a class:
exactly, by another of its names, or closely; else it is "no vote". An image counts as annotated when all its questions
are answered. One that the server refuses is a reject with the server's words; what a spent budget or a failing server
leaves open is asked by the next run. A server that refuses key, model or address ends the questions, and what was
answered until then is kept.
"""

from __future__ import annotations

import asyncio
import base64
import io
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coreg_ray.annotation.chat_client import ChatClient, Ended, Passing, Refused
from coreg_ray.annotation.chat_votes import vote_of
from coreg_ray.annotation.ledger import Usage

if TYPE_CHECKING:
    from coreg_ray.annotation.vocabulary import Vocabulary
    from coreg_ray.config import AnnotatorConfig

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_FAILURES_IN_A_ROW = 5  # images, each after all its retries: then the server is taken for down
_REFUSALS_AT_FIRST = 5  # images, before any was answered: then not they are the reason


class Unanswered(Exception):
    """A question that got no answer: the budget is spent, or all attempts failed."""


@dataclass(frozen=True)
class ChatAnswers:
    """What came of a batch of images; those that are in neither table stay open.

    Attributes:
        answered: the rows that were answered, without `image`, with `votes` (b, P) int32 and `answers` (b, P).
        refused: the rows that the server refused, without `image`, with its words as `reason`.
        usage: what the batch cost.
        notes: what a person should know, each in one line.
        error: why no question can be answered, in words for a person; empty where they can.
    """

    answered: dict[str, NDArray[Any]]
    refused: dict[str, NDArray[Any]]
    usage: Usage
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass
class ChatAnnotator:
    """Asks a chat model every question about every image, a bounded number of requests at a time.

    Attributes:
        config: endpoint, model, limits.
        words: classes, and questions in place of prompts.
        asked: requests sent so far, failed ones and those of earlier runs included.
        proven: whether the server has ever answered, in earlier runs too.
    """

    config: AnnotatorConfig
    words: Vocabulary
    asked: int = 0
    proven: bool = False
    _reserved: int = 0  # requests that images under way may still send
    _usage: Usage = field(default_factory=Usage)
    _failed_in_a_row: int = 0
    _notes: dict[str, None] = field(default_factory=dict)  # in their order, each once
    _error: str = ""

    def __call__(self, batch: dict[str, NDArray[Any]]) -> ChatAnswers:
        """Ask about `image` (B, S, S, 3) uint8; whatever the server does, what was answered is returned."""
        outcomes = asyncio.run(self._ask_all(batch["image"]))
        answers = [outcome for outcome in outcomes if isinstance(outcome, list)]
        refusals = [str(outcome) for outcome in outcomes if isinstance(outcome, Refused)]
        self.proven = self.proven or bool(answers)
        if not self.proven and len(refusals) >= _REFUSALS_AT_FIRST:
            self._error = self._error or f"no image was answered, {len(refusals)} were refused: {refusals[0]}"
            refusals = []
        usage, notes, self._usage, self._notes = self._usage, tuple(self._notes), Usage(), {}
        refused = _rows(batch, [bool(refusals) and isinstance(outcome, Refused) for outcome in outcomes])
        answered = _rows(batch, [isinstance(outcome, list) for outcome in outcomes])
        shape = (len(answers), len(self.words.prompts))
        texts = np.empty(shape, dtype=object)
        texts[:] = answers if answers else texts
        votes = [[vote_of(text, self.words) for text in each] for each in answers]
        return ChatAnswers(
            {**answered, "votes": np.array(votes, dtype=np.int32).reshape(shape), "answers": texts},
            {**refused, "reason": np.array(refusals, dtype=object)},
            usage,
            notes,
            self._error,
        )

    async def _ask_all(self, images: NDArray[np.uint8]) -> list[list[str] | Refused | None]:
        limit = asyncio.Semaphore(self.config.concurrency)
        async with ChatClient(self.config) as client:
            return list(await asyncio.gather(*(self._ask_about(client, limit, image) for image in images)))

    async def _ask_about(
        self, client: ChatClient, limit: asyncio.Semaphore, image: NDArray[np.uint8]
    ) -> list[str] | Refused | None:
        """The answers (P) about one image, why the server refuses it, or None."""
        async with limit:  # an image at a time in each slot, so that a spent budget leaves few images half asked
            questions = self._questions()
            if self._error or self._failed_in_a_row >= _FAILURES_IN_A_ROW or not self._affordable(len(questions)):
                return None
            self._reserved += len(questions)
            answers: list[str] = []
            try:
                for question in questions:
                    self._reserved -= 1
                    answers.append(await self._ask(client, question, _data_url(image)))
            except (Unanswered, Refused, Ended) as reason:
                self._reserved -= len(questions) - len(answers) - 1
                return self._without(reason)
            self._failed_in_a_row = 0
            return answers

    def _without(self, reason: Exception) -> Refused | None:
        """What an image without answers comes to, and what is to be said of it."""
        if isinstance(reason, Refused):
            self._failed_in_a_row = 0
            return reason
        if isinstance(reason, Ended):
            self._error = self._error or str(reason)
        elif self._failed_in_a_row == _FAILURES_IN_A_ROW:
            self._note(f"{_FAILURES_IN_A_ROW} images in a row got no answer, so no more are asked about: {reason}")
        elif self._failed_in_a_row < _FAILURES_IN_A_ROW:
            self._note(f"images stay without an answer: {reason}")
        return None

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _questions(self) -> list[str]:
        class_names = ", ".join(self.words.shown)
        return [question.replace("{}", class_names) for question in self.words.prompts]

    async def _ask(self, client: ChatClient, question: str, picture: str) -> str:
        """One answer, after as many attempts as are allowed."""
        problem = Passing("not asked")
        for attempt in range(self.config.retries + 1):
            if attempt and not self._affordable(1):
                raise Unanswered(f"{problem}; no budget is left to ask again")
            if attempt:
                await asyncio.sleep(_wait_s(attempt, problem.wait_s))
            self.asked += 1
            self._usage.requests += 1
            try:
                text, input_tokens, output_tokens = await client.ask(question, picture)
            except Passing as error:
                problem = error
                continue
            self._usage.input_tokens += input_tokens
            self._usage.output_tokens += output_tokens
            return text
        self._failed_in_a_row += 1
        raise Unanswered(f"{self.config.retries + 1} attempts failed, the last because {problem}")

    def _affordable(self, requests: int) -> bool:
        limit = self.config.max_requests
        if limit is None or self.asked + self._reserved + requests <= limit:
            return True
        self._note(
            f"annotator.max_requests={limit} is spent, earlier runs and estimates included; raise it to ask about more"
        )
        return False


def _rows(batch: dict[str, NDArray[Any]], kept: list[bool]) -> dict[str, NDArray[Any]]:
    """Some rows of a batch, without their pixels."""
    return {name: values[np.array(kept, dtype=bool)] for name, values in batch.items() if name != "image"}


def _wait_s(attempt: int, asked_s: float) -> float:
    """Seconds before the next attempt: what the server asks for, else doubling, spread so that not all come at once."""
    backoff = _FIRST_WAIT_S * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.0)
    return min(_LONGEST_WAIT_S, max(asked_s, backoff))


def _data_url(image: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
