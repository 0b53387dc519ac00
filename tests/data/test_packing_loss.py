"""Packed blocks teach a network what the same texts teach it one by one."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_language import CHAT_TEMPLATE, make_documents, tiny_model, train_tokenizer

from finetune.data.blocks import blocks_of
from finetune.preprocess.language import Conversation, LanguageEncoder, LanguageInput, LanguagePreprocess, Sequence
from finetune.tasks import TASKS

torch = pytest.importorskip("torch")
LENGTH = 96


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LanguageEncoder:
    path = tmp_path_factory.mktemp("packing") / "tokenizer.json"
    train_tokenizer(make_documents(60)).save(str(path))
    return LanguageEncoder(path, LanguagePreprocess(LENGTH, 0, None, (2,), chat_template=CHAT_TEMPLATE))


@pytest.fixture(scope="module")
def items() -> list[LanguageInput]:
    """Documents, one of them longer than a block, and conversations."""
    texts = [text[: 30 + 12 * number] for number, text in enumerate(make_documents(12))]
    pairs = [Conversation.pair(text[:20], text[20:50]) for text in make_documents(5, seed=1)]
    return [*texts, *pairs, " ".join(texts[:6])]


def sequences(encoder: LanguageEncoder, items: list[LanguageInput], *, packing: bool) -> tuple[Sequence, ...]:
    places = [str(row) for row in range(len(items))]
    return blocks_of(encoder.encode(items), LENGTH, packing=packing, overlong="split", places=places).sequences


def learn(model: Any, encoder: LanguageEncoder, rows: tuple[Sequence, ...]) -> tuple[float, dict[str, Any]]:
    """The summed loss, and the gradient of the mean loss."""
    model.zero_grad()
    inputs = {name: torch.from_numpy(array) for name, array in encoder.collate(rows).items()}
    targets = torch.from_numpy(encoder.targets(rows))
    target = TASKS["causal_lm"].target
    loss = target.loss_sums(model(**inputs).logits, targets, None, 0.0, None)
    (loss / target.loss_denominator(targets, None)).backward()
    return float(loss.detach()), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-tied"])
def test_packed_and_unpacked_training_give_the_same_loss_and_gradients(
    encoder: LanguageEncoder, items: list[LanguageInput], kind: str
) -> None:
    model = tiny_model(kind, 300)
    packed, alone = (sequences(encoder, items, packing=packing) for packing in (True, False))
    assert len(packed) < 0.7 * len(alone)
    loss, gradients = learn(model, encoder, packed)
    expected, wanted = learn(model, encoder, alone)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_the_borders_the_loss_would_be_another(
    encoder: LanguageEncoder, items: list[LanguageInput], kind: str
) -> None:
    model = tiny_model(kind, 300)
    packed = sequences(encoder, items, packing=True)
    borderless = tuple(Sequence(row.ids, row.targets, [0] * len(row.ids), row.rows) for row in packed)
    loss, _ = learn(model, encoder, packed)
    mixed, _ = learn(model, encoder, borderless)
    assert abs(mixed - loss) > 1e-3 * abs(loss)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_tokens_of_one_document_do_not_change_the_loss_of_another(encoder: LanguageEncoder, kind: str) -> None:
    model = tiny_model(kind, 300)
    first, second, other = (encoder.encode([text])[0] for text in make_documents(3, seed=2))

    def loss_of_second(neighbour: Sequence) -> float:
        hidden = Sequence(neighbour.ids[:20], [-100] * 20, [0] * 20, (0,))
        rows = (
            Sequence([*hidden.ids, *second.ids], [*hidden.targets, *second.targets], [0] * 20 + [1] * len(second.ids)),
        )
        return learn(model, encoder, rows)[0]

    assert loss_of_second(first) == pytest.approx(loss_of_second(other), rel=1e-6)
