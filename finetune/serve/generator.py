"""A language bundle's continuations from Python: a prompt in, text out as it comes. Neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.bundle import MODEL_FOLDER, Bundle
from finetune.disk import read_json
from finetune.errors import BundleError, DataError
from finetune.preprocess import Conversation, LanguageEncoder, LanguageInput, LanguagePreprocess, language
from finetune.runtime import CachedDecoder, open_session
from finetune.serve.forms import Which, batch_invariant, onnx_file
from finetune.serve.predictor import check_batch_size
from finetune.serve.sampling import Sampling, is_whole
from finetune.serve.text_stream import Detokeniser, StopStrings

Finish = Literal["length", "stop", "eos"]
Prompt = str | Conversation | Sequence[Mapping[str, str] | tuple[str, str]]
"""A text to go on with, or a conversation to answer: messages with role and content."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A continuation. `tokens` are all ids that the model gave, an end token included; `finish` says why it ended.

    finish: `eos` the model ended the text; `stop` a stop string was met, and is not in the text; `length` the limit came.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish


class Continuation(Iterator[str]):
    """Pieces of a continuation, each computed when it is asked for; joined they are the text."""

    def __init__(self, pieces: Callable[[Continuation], Iterator[str]]) -> None:
        self.tokens: list[int] = []
        """Ids so far."""
        self.finish: Finish | None = None
        """Why it ended; None before that."""
        self._pieces = pieces(self)

    def __next__(self) -> str:
        return next(self._pieces)


class Generator:
    """An open language bundle. One generator may be used by many threads at once; each continuation is its own."""

    def __init__(
        self, path: str | Path, *, which: Which = "served", threads: int | None = None, verify: bool = True
    ) -> None:
        """Open the bundle at `path`, re-hashing every file first unless `verify` is false.

        `which` picks the ONNX file: the one the bundle serves, or `onnx` (fp32) or `int8` by name. `threads` is per call
        to the model, the usable cores when None. BundleError if the bundle cannot be used, or continues no text.
        """
        self._bundle = bundle = Bundle.open(Path(path), verify=verify)
        if not isinstance(bundle.preprocess, LanguagePreprocess):
            raise BundleError(
                f"{path}: this bundle answers {bundle.modality}s and continues no prompt; in Python open it with finetune.Predictor"
            )
        file = onnx_file(bundle, which)
        self._settings = bundle.preprocess
        # A chat template is compiled when a conversation comes: it needs jinja2, and a plain prompt does not.
        self._encoder = _encoder(bundle, replace(bundle.preprocess, chat_template=None))
        self._decoder = CachedDecoder(open_session(bundle.path / file, threads))
        self._one_by_one = not batch_invariant(bundle, file)
        self.context = _context(bundle)
        """Most tokens that prompt and continuation may have together; None where nothing says."""

    @property
    def manifest(self) -> Mapping[str, object]:
        """The bundle's manifest.json."""
        return self._bundle.manifest

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> Continuation:
        """An iterator over the continuation's pieces of text, whole characters only; it also counts tokens.

        Without a temperature the most probable token is taken each time (greedy), whatever the model's generation config
        proposes; the other settings are those of `Sampling`. A stop string ends the text before it. DataError, before
        anything is computed, for a prompt or setting that cannot be used.
        """
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
        ids = self.prompt_ids(prompt)
        self._check_length(len(ids), max_new_tokens)
        stops = StopStrings(stop)
        # A special token is no text: one that is named as a stop string ends the text as itself.
        ends = {found[0] for text in stop if len(found := self._encoder.tokens(text)) == 1 and not self._decode(found)}
        return Continuation(lambda record: self._pieces(record, ids, max_new_tokens, sampling, stops, ends))

    def generate(self, prompt: Prompt, **settings: Any) -> Generation:
        """The whole continuation at once; settings as for `stream`."""
        continuation = self.stream(prompt, **settings)
        text = "".join(continuation)
        assert continuation.finish is not None
        return Generation(text, tuple(continuation.tokens), continuation.finish)

    def tallies(self, inputs: Sequence[LanguageInput], batch_size: int = 8) -> NDArray[np.float64]:
        """float64 (N, 3) of each document or conversation: nats lost, tokens that count, and how many argmax got right.

        exp(sum of nats / sum of tokens) is the perplexity. DataError names an input longer than the model's context.
        """
        chats = any(isinstance(item, Conversation) for item in inputs)
        encoder = self._chat_encoder if chats and self._settings.chat_template is not None else self._encoder
        return self.tallies_of(encoder.encode(inputs), batch_size)

    def tallies_of(self, sequences: Sequence[language.Sequence], batch_size: int = 8) -> NDArray[np.float64]:
        """As `tallies`, of inputs that are encoded already; several documents may be packed into one sequence.

        A model that the manifest does not call batch-invariant gets one document at a time, whatever `batch_size` is.
        """
        check_batch_size(batch_size)
        for row, sequence in enumerate(sequences):
            if self.context is not None and len(sequence.ids) > self.context:
                raise DataError(
                    f"input {row} has {len(sequence.ids):,} tokens, but the model takes {self.context:,}; split it"
                )
        return self._decoder.tallies(sequences, self._encoder, 1 if self._one_by_one else batch_size)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt as the model reads it: a plain text, or a conversation through its chat template."""
        if isinstance(prompt, str):
            ids = self._encoder.prompt_ids(prompt)
        elif self._settings.chat_template is None:
            raise BundleError(
                f"{self._bundle.path}: the model has no chat template, so it takes a plain prompt and no conversation"
            )
        else:
            ids = self._chat_encoder.chat_ids(prompt)
        if not ids:
            raise DataError("the prompt is empty; give at least a word to go on from")
        return ids

    def _check_length(self, prompt: int, wanted: int) -> None:
        if not is_whole(wanted, 1):
            raise DataError(f"max_new_tokens is {wanted!r}; it must be a whole number of at least 1")
        if self.context is None or prompt + wanted <= self.context:
            return
        if prompt >= self.context:
            raise DataError(
                f"the prompt has {prompt:,} tokens, but the model takes {self.context:,}, continuation included; shorten it"
            )
        raise DataError(
            f"the prompt has {prompt:,} tokens and the model takes {self.context:,}, so max_new_tokens can be at most "
            f"{self.context - prompt:,}, not {wanted:,}"
        )

    def _pieces(
        self,
        record: Continuation,
        prompt: list[int],
        limit: int,
        sampling: Sampling,
        stops: StopStrings,
        ends: set[int],
    ) -> Iterator[str]:
        random = np.random.default_rng(sampling.seed)
        detokeniser = Detokeniser(self._decode, prompt)
        seen, met = set(prompt), False
        logits, cache = self._decoder.prefill(np.array([prompt], np.int64))
        while True:
            token = sampling.choose(self._finite(logits[0]), seen, random)
            record.tokens.append(token)
            seen.add(token)
            if token in self._settings.eos_token_ids or token in ends:
                record.finish = "eos" if token in self._settings.eos_token_ids else "stop"
                break
            text, met = stops.push(detokeniser.push(token))
            if met or len(record.tokens) == limit:
                record.finish = "stop" if met else "length"
            if text:
                yield text
            if record.finish is not None:
                break
            logits, cache = self._decoder.step(np.array([token], np.int64), cache)
        if met:
            return
        text, met = stops.push(detokeniser.flush())
        text, record.finish = (text, "stop") if met else (text + stops.flush(), record.finish)
        if text:
            yield text

    def _decode(self, ids: Sequence[int]) -> str:
        return self._encoder.decode(ids)

    def _finite(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self._bundle.path}: the model gave a number that is not finite; its weights are damaged"
            )
        return logits

    @cached_property
    def _chat_encoder(self) -> LanguageEncoder:
        try:
            return _encoder(self._bundle, self._settings)
        except ModuleNotFoundError as error:
            if error.name != "jinja2":
                raise
            raise BundleError(
                "a conversation is written by the model's chat template, which needs jinja2; run pip install jinja2"
            ) from error


def _encoder(bundle: Bundle, settings: LanguagePreprocess) -> LanguageEncoder:
    encoder = replace(bundle, preprocess=settings).encoder()
    assert isinstance(encoder, LanguageEncoder)
    return encoder


def _context(bundle: Bundle) -> int | None:
    """Tokens that the model's positions allow, from its configuration in the bundle."""
    file = bundle.path / MODEL_FOLDER / "config.json"
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, Mapping):
        return None
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    return min((limit for limit in limits if is_whole(limit, 1)), default=None)
