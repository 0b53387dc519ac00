"""A model's own chat template: conversations to the text that it was taught on, as transformers' apply_chat_template renders it.

A template is a program that came with a model, so it runs in Jinja's sandbox, and sees strings and lists only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune.errors import DataError

Message = tuple[str, str]
"""A role and what it says."""
Span = tuple[int, int]
"""First character of a stretch, and the one after its last."""

# Unicode keeps these two for a program's own use: no text has them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKED = "finetune_marks"


class ChatTemplate:
    """A compiled template; safe to share between threads, as each rendering has its own state."""

    def __init__(self, source: str, special: Mapping[str, str | None]) -> None:
        """source: Jinja; special: text of each special token by name, which templates use. DataError for a syntax error."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals.update(
            raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form), dict=_Dict(), namespace=_Namespace
        )  # fmt: skip
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"the model's chat template is no valid Jinja (line {error.lineno}: {error.message}); mend it in the model"
            ) from error
        self._special = {name: token for name, token in special.items() if token is not None}
        self._marks_answers = bool(environment.parse(source).find(nodes.CallBlock)) and "endgeneration" in source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The conversation as text, with the beginning of an answer if asked for; DataError with the template's complaint."""
        return self._render(messages, add_generation_prompt=add_generation_prompt, marks=False)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool, marks: bool) -> str:
        plain = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._template.render(
                messages=plain, tools=[], documents=None, add_generation_prompt=add_generation_prompt,
                **{**self._special, _MARKED: marks},
            )  # fmt: skip
        except Exception as error:  # a template is a program of someone else's, and raises what it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            roles = ", ".join(role for role, _ in messages[:8]) + (", …" if len(messages) > 8 else "")
            raise DataError(
                f"the model's chat template refuses a conversation of {roles or 'no message'} ({reason}); change the conversation"
            ) from error

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and where in it each answer of the assistant stands, what ends it included.

        A template may mark answers itself ({% generation %}). Else an answer is what its message adds to the conversation
        before it and the beginning of an answer, so a template that renders a message otherwise when more follow is refused.
        """
        text = self.render(messages, add_generation_prompt=False)
        if self._marks_answers:
            return text, self._marked(messages, text)
        return text, [self._added(messages, at, text) for at, (role, _) in enumerate(messages) if role == "assistant"]

    def _added(self, messages: Sequence[Message], at: int, text: str) -> Span:
        before = self.render(messages[:at], add_generation_prompt=True)
        whole = self.render(messages[: at + 1], add_generation_prompt=False)
        if not (whole.startswith(before) and text.startswith(whole)):
            raise DataError(
                f"the model's chat template renders message {at + 1} of {len(messages)} in another way when it is followed or "
                "waited for, so the assistant's tokens cannot be told from the others; mark them in the template with "
                "{% generation %}, or give one answer per conversation"
            )
        return len(before), len(whole)

    def _marked(self, messages: Sequence[Message], text: str) -> list[Span]:
        marked = self._render(messages, add_generation_prompt=False, marks=True)
        head, *parts = marked.split(_OPEN)
        spans: list[Span] = []
        at = len(head)
        for part in parts:
            said, _, after = part.partition(_CLOSE)
            spans.append((at, at + len(said)))
            at += len(said) + len(after)
        in_order = _CLOSE not in head and all(part.count(_CLOSE) == 1 for part in parts)
        if not in_order or marked.replace(_OPEN, "").replace(_CLOSE, "") != text:
            raise DataError(
                "the model's chat template changes what stands between {% generation %} and {% endgeneration %}, "
                "so the assistant's tokens cannot be found; mend it in the model"
            )
        return spans


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: what stands there is the assistant's; it is marked when the caller asks."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_said", [nodes.Name(_MARKED, "load")])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _said(self, marks: object, caller: Any) -> str:
        said = str(caller())
        return f"{_OPEN}{said}{_CLOSE}" if marks is True else said


class _Dict:
    """The template's `dict`, without the attributes of the class."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)


class _Namespace(jinja2.utils.Namespace):
    """The template's `namespace`, which keeps no name that begins with an underscore."""

    def __init__(*pairs: Any, **named: Any) -> None:  # so that `self` is a name like any other
        space, *rest = pairs
        values = dict(*rest, **named)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(space, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not keep the private name {name!r}")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
