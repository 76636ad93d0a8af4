"""Rendering of chats with a tokenizer's own template."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Form = Callable[[Any], Any]


@dataclass
class Template:
    """A chat template that renders chats to token ids.

    Attributes:
        tokenizer: the tokenizer with the template.
        date: date (year-month-day) that the template receives when it asks for the current date.
        date_used: whether the template has asked for the date.
    """

    tokenizer: PreTrainedTokenizerBase
    date: str
    date_used: bool = False
    _forms: dict[tuple[str, bool], Form] = field(default_factory=dict)

    def __call__(self, messages: list[Message]) -> list[int]:
        """Return the token ids of a chat.

        Raises:
            ValueError: The template refuses the messages, or omits a part of their text.
        """
        return list(self._render(self._with_content_forms(messages), tokenize=True))

    def _render(self, messages: list[Message], tokenize: bool) -> Any:
        with self._dated():
            try:
                return self.tokenizer.apply_chat_template(
                    messages, tokenize=tokenize, return_dict=False
                )
            except Exception as error:  # a template may raise any exception
                raise ValueError(f"the chat template refuses the messages ({error})") from error

    @contextmanager
    def _dated(self) -> Iterator[None]:
        """Let the template's `strftime_now` return the configured date inside the block."""
        from transformers.utils import chat_template_utils

        template = self
        fixed = datetime.datetime.fromisoformat(self.date)

        class Dated(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Dated:
                template.date_used = True
                return cls(fixed.year, fixed.month, fixed.day, tzinfo=tz)

        # transformers takes no clock as an argument, so its module global is replaced.
        original = vars(chat_template_utils)["datetime"]
        vars(chat_template_utils)["datetime"] = Dated
        try:
            yield
        finally:
            vars(chat_template_utils)["datetime"] = original

    def _with_content_forms(self, messages: list[Message]) -> list[Message]:
        """Return the messages with each content in the form that the template reads."""
        for number, message in enumerate(messages, 1):
            _refuse_other_parts(message["content"], number)
        for index, message in enumerate(messages):
            key = (str(message["role"]), isinstance(message["content"], list))
            if message["content"] and key not in self._forms:
                self._forms[key] = self._form(messages, index)
        return [self._with_content_form(message) for message in messages]

    def _with_content_form(self, message: Message) -> Message:
        content = message["content"]
        form = self._forms.get((str(message["role"]), isinstance(content, list)), _unchanged)
        if form is _as_text and len(content) > 1:
            raise ValueError(
                "the chat template takes a message's content as text, and it is a list of "
                f"{len(content)} parts; join the parts"
            )
        return {**message, "content": form(content)} if content else message

    def _form(self, messages: list[Message], index: int) -> Form:
        """Return the form in which the template renders the whole text of a message.

        Raises:
            ValueError: The content is a list of parts, and the template renders it in no form.
        """
        parts = isinstance(messages[index]["content"], list)
        alternative = _as_text if parts else _as_parts
        for form in (_unchanged, alternative):
            try:
                if self._renders_text(messages, index, form):
                    return form
            except ValueError:  # the template does not take this form
                continue
        if parts:
            raise ValueError(
                f"message {index + 1}: the chat template renders no content that is a list of "
                f"parts; give its text instead"
            )
        return _unchanged  # the template omits it on purpose, or refuses it when it is rendered

    def _renders_text(self, messages: list[Message], index: int, form: Form) -> bool:
        """Return whether a template renders a message's text, and not the `repr` of a list."""
        content = messages[index]["content"]
        marks = [f"mark{number}mark" for number in range(len(content) if _is_list(content) else 1)]
        marked: Any = marks[0]
        if _is_list(content):
            marked = [{**part, "text": mark} for part, mark in zip(content, marks, strict=True)]
            if form is _as_text:
                marked = marked[:1]
                marks = marks[:1]
        content_of_form = form(marked)
        probe = [
            self._in_known_form(message)
            if at != index
            else {**messages[index], "content": content_of_form}
            for at, message in enumerate(messages)
        ]
        rendered = str(self._render(probe, tokenize=False))
        quoted = [repr(mark) in rendered or json.dumps(mark) in rendered for mark in marks]
        offsets = [rendered.find(mark) for mark in marks]
        as_list = _is_list(content_of_form) and any(quoted)
        return -1 not in offsets and offsets == sorted(offsets) and not as_list

    def _in_known_form(self, message: Message) -> Message:
        """Return a message in the form of its role, or unchanged if the form is not known yet."""
        content = message["content"]
        form = self._forms.get((str(message["role"]), _is_list(content)), _unchanged)
        return {**message, "content": form(content)} if content else message


def _is_list(content: Any) -> bool:
    return isinstance(content, list)


def _unchanged(content: Any) -> Any:
    return content


def _as_text(content: Any) -> Any:
    return content[0]["text"]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}]


def _refuse_other_parts(content: Any, number: int) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ValueError(f"message {number}: content must be text or a list of parts")
    for part in content:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(
                f"message {number}: a part of its content is {str(kind)[:40]!r} instead of text; "
                f"only text is supported"
            )


def unplain(value: Any, path: str = "") -> str | None:
    """Return a description of the first value that is not JSON, with its path; None if all are."""
    if value is None or isinstance(value, str | bool | int | float):
        return None
    if isinstance(value, dict):
        faults = (unplain(item, f"{path}.{key}".lstrip(".")) for key, item in value.items())
    elif isinstance(value, list):
        faults = (unplain(item, f"{path}[{index}]") for index, item in enumerate(value))
    else:
        return f"{path} is a {type(value).__name__}"
    return next((fault for fault in faults if fault), None)
