"""The HTTP side of the chat annotator: whom images and keys go to, one question at a time, what a refusal means.

A key goes to one host only. Redirects are not followed, since they would carry images and key along; $OPENAI_API_KEY is
sent to api.openai.com and to nobody else, unless `annotator.key_variable` names it for the endpoint that is configured.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from coreg_ray.errors import UserError
from coreg_ray.run.uris import without_credentials

if TYPE_CHECKING:
    from types import TracebackType

    from coreg_ray.config import AnnotatorConfig

KEY_VARIABLE, KEY_HOST = "OPENAI_API_KEY", "api.openai.com"
_NO_KEY = "none"  # the client wants one; a server of one's own does not
_MAX_TOKENS = 32
_ABOUT_THE_IMAGE = (400, 413, 422)
_PASSING = (408, 409, 425, 429)  # and 5xx
_WORDS = 300  # characters of what a server says


class Passing(Exception):
    """A failure that may be gone at the next attempt; `wait_s`: what the server asks to wait, 0 where nothing."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Refused(Exception):
    """The server will not answer about this image, and says why."""


class Ended(Exception):
    """The server refuses the key, the model or the address: no question can be answered."""


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


def key_variable(config: AnnotatorConfig) -> str | None:
    """The environment variable whose key the endpoint may see: the one named, else OpenAI's for OpenAI alone."""
    if config.key_variable is not None:
        return config.key_variable
    address = urlsplit(config.endpoint or "")
    return KEY_VARIABLE if (address.scheme, address.hostname) == ("https", KEY_HOST) else None


class ChatClient:
    """One server, for the duration of an `async with`."""

    def __init__(self, config: AnnotatorConfig) -> None:
        import openai

        self._config = config
        self._variable = key_variable(config)
        self._key = (os.environ.get(self._variable) if self._variable else None) or _NO_KEY
        self._client = openai.AsyncOpenAI(
            base_url=config.endpoint,
            api_key=self._key,
            max_retries=0,
            timeout=config.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        if self._variable != KEY_VARIABLE:  # whose names, read from the environment, concern nobody else
            self._client.organization = self._client.project = None

    async def __aenter__(self) -> ChatClient:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def ask(self, question: str, picture: str) -> tuple[str, int, int]:
        """One question about one picture (a data: URI), put once.

        Returns:
            The answer, and the tokens of question and answer where the server counts them.

        Raises:
            Passing, Refused, Ended: there is no answer; their texts hold the server's words.
        """
        import openai

        content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": picture}}]
        messages: Any = [{"role": "user", "content": content}]
        try:
            reply = await self._client.chat.completions.create(
                model=self._config.model, messages=messages, max_tokens=_MAX_TOKENS, temperature=0
            )
        except openai.APIStatusError as error:
            raise self._problem(error) from error
        except (openai.APIConnectionError, openai.APIResponseValidationError, json.JSONDecodeError) as error:
            cause = f" ({error.__cause__})" if str(error.__cause__ or "") else ""  # time-outs are the first of them
            raise Passing(f"{self._host} does not answer as it should: {type(error).__name__}{cause}") from error
        return _read(reply, self._host)

    @property
    def _host(self) -> str:
        return urlsplit(self._config.endpoint or "").netloc.rsplit("@", 1)[-1]

    def _problem(self, error: Any) -> Exception:
        """What a status above 299 means."""
        status, headers = error.status_code, error.response.headers
        answered = f"{self._host} answers with status {status}: {self._words(error)}"
        if status in _ABOUT_THE_IMAGE:
            return Refused(answered)
        if status in _PASSING or status >= 500:
            return Passing(answered, wait_asked_s(headers))
        if 300 <= status < 400:
            target = without_credentials(headers.get("location", "nowhere"))
            return Ended(
                f"{self._host} redirects to {target}, where neither images nor keys are sent; if that is the right "
                "server, give its address with --annotator.endpoint"
            )
        key = (
            f"the key in ${self._variable} {'as the annotator sees it' if self._key != _NO_KEY else '(which is empty)'}"
            if self._variable
            else f"the key: none was sent, since ${KEY_VARIABLE} is for {KEY_HOST} alone; if {self._host} wants one, "
            "name the variable that holds it with --annotator.key_variable"
        )
        return Ended(f"{answered}. Check the address, annotator.model={self._config.model} and {key}")

    def _words(self, error: Any) -> str:
        """What the server says, in one line, without the key."""
        body = error.body
        text = body.get("message") if isinstance(body, dict) else body
        if not isinstance(text, str) or not text.strip():
            text = json.dumps(body) if body else error.response.text
        line = " ".join(str(text).split()) or "nothing"
        if self._key != _NO_KEY:
            line = line.replace(self._key, "***")
        return line if len(line) <= _WORDS else f"{line[:_WORDS]}..."


def wait_asked_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` as seconds or a date; 0 where nothing."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    until = _date(headers.get("retry-after"))
    if until is None:
        return 0.0
    now = _date(headers.get("date")) or datetime.now(timezone.utc)  # by the server's own clock
    return max(0.0, (until - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (TypeError, ValueError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


def _read(reply: Any, host: str) -> tuple[str, int, int]:
    """The text and tokens of a reply, whatever a server that speaks the protocol loosely sent."""
    try:
        text = reply.choices[0].message.content
    except (AttributeError, IndexError, TypeError) as error:
        raise Passing(f"{host} sends a reply without choices") from error
    usage = getattr(reply, "usage", None)
    tokens = (getattr(usage, name, 0) or 0 for name in ("prompt_tokens", "completion_tokens"))
    asked, answered = (count if isinstance(count, int) else 0 for count in tokens)
    return text if isinstance(text, str) else "", asked, answered
