"""Chats, rendered with a tokenizer's own template."""

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
    """Renders chats to token ids.

    Attributes:
        tokenizer: that has the template.
        date: what the template gets which asks for today's date.
        asked: whether it has asked.
    """

    tokenizer: PreTrainedTokenizerBase
    date: str
    asked: bool = False
    _forms: dict[tuple[str, bool], Form] = field(default_factory=dict)

    def __call__(self, messages: list[Message]) -> list[int]:
        """Token ids of a chat.

        Raises:
            ValueError: the template refuses the messages, or leaves out text of theirs.
        """
        return list(self._render(self._as_wanted(messages), tokenize=True))

    def _render(self, messages: list[Message], tokenize: bool) -> Any:
        with self._dated():
            try:
                return self.tokenizer.apply_chat_template(
                    messages, tokenize=tokenize, return_dict=False
                )
            except Exception as error:  # templates raise what they like
                raise ValueError(f"the chat template refuses the messages ({error})") from error

    @contextmanager
    def _dated(self) -> Iterator[None]:
        """The template's `strftime_now` gives the date of the configuration, inside the block."""
        from transformers.utils import chat_template_utils

        template = self
        fixed = datetime.datetime.fromisoformat(self.date)

        class Dated(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> Dated:
                template.asked = True
                return cls(fixed.year, fixed.month, fixed.day, tzinfo=tz)

        # It takes no function from the caller: what a template sees is plain data.
        held = vars(chat_template_utils)["datetime"]
        vars(chat_template_utils)["datetime"] = Dated
        try:
            yield
        finally:
            vars(chat_template_utils)["datetime"] = held

    def _as_wanted(self, messages: list[Message]) -> list[Message]:
        """The messages with each content in the form that the template reads."""
        for number, message in enumerate(messages, 1):
            _refuse_other_parts(message["content"], number)
        for index, message in enumerate(messages):
            key = (str(message["role"]), isinstance(message["content"], list))
            if message["content"] and key not in self._forms:
                self._forms[key] = self._form(messages, index)
        return [self._formed(message) for message in messages]

    def _formed(self, message: Message) -> Message:
        content = message["content"]
        form = self._forms.get((str(message["role"]), isinstance(content, list)), _as_it_is)
        if form is _as_text and len(content) > 1:
            raise ValueError(
                "the chat template takes a message's content as text, and it is a list of "
                f"{len(content)} parts: join them"
            )
        return {**message, "content": form(content)} if content else message

    def _form(self, messages: list[Message], index: int) -> Form:
        """The form in which the text of a message comes out of the template whole.

        Raises:
            ValueError: no form of a list of parts does.
        """
        parts = isinstance(messages[index]["content"], list)
        other = _as_text if parts else _as_parts
        for form in (_as_it_is, other):
            try:
                if self._comes_out(messages, index, form):
                    return form
            except ValueError:  # the template does not take this form
                continue
        if parts:
            raise ValueError(
                f"message {index + 1}: the chat template renders no content that is a list of "
                f"parts: give text"
            )
        return _as_it_is  # left out on purpose, or refused when it is rendered

    def _comes_out(self, messages: list[Message], index: int, form: Form) -> bool:
        """Whether a template gives a message's text, and not Python's way to write a list."""
        content = messages[index]["content"]
        marks = [f"mark{number}mark" for number in range(len(content) if _is_list(content) else 1)]
        marked: Any = marks[0]
        if _is_list(content):
            marked = [{**part, "text": mark} for part, mark in zip(content, marks, strict=True)]
            if form is _as_text:
                marked = marked[:1]
                marks = marks[:1]
        given = form(marked)
        changed = [*messages]
        changed[index] = {**messages[index], "content": given}
        others = [
            self._plain(message) if at != index else message for at, message in enumerate(changed)
        ]
        rendered = str(self._render(others, tokenize=False))
        written = [repr(mark) in rendered or json.dumps(mark) in rendered for mark in marks]
        in_order = [rendered.find(mark) for mark in marks]
        as_list = _is_list(given) and any(written)
        return -1 not in in_order and in_order == sorted(in_order) and not as_list

    def _plain(self, message: Message) -> Message:
        """Another message, in a form that is known where one is."""
        content = message["content"]
        form = self._forms.get((str(message["role"]), _is_list(content)), _as_it_is)
        return {**message, "content": form(content)} if content else message


def _is_list(content: Any) -> bool:
    return isinstance(content, list)


def _as_it_is(content: Any) -> Any:
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
                f"message {number}: a part of its content is no text but {str(kind)[:40]!r}, and "
                f"only text can be run"
            )


def unplain(value: Any, path: str = "") -> str | None:
    """What in messages is no JSON, with its place; None where all is."""
    if value is None or isinstance(value, str | bool | int | float):
        return None
    if isinstance(value, dict):
        found = (unplain(held, f"{path}.{key}".lstrip(".")) for key, held in value.items())
    elif isinstance(value, list):
        found = (unplain(held, f"{path}[{index}]") for index, held in enumerate(value))
    else:
        return f"{path} is a {type(value).__name__}"
    return next((fault for fault in found if fault), None)
