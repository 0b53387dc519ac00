from typing import Any

import numpy as np
import pytest
from exported_decoders import ExportedDecoder, token_rows

from finetune.errors import ExportError
from finetune.export.causal_int8 import causal_candidates, quantize_causal
from finetune.export.causal_measure import (
    Answers,
    TorchDecoder,
    answers_of,
    invariances,
    logit_gaps,
    same_choice,
    sample_of,
)
from finetune.export.generation_speed import measure_generation
from finetune.export.greedy import compare_greedy
from finetune.preprocess.language import IGNORED, Sequence
from finetune.runtime import CachedDecoder, open_session


def onnx_of(made: ExportedDecoder) -> CachedDecoder:
    return CachedDecoder(open_session(made.onnx))


def test_torch_and_onnx_answer_alike_to_every_text(decoder: ExportedDecoder) -> None:
    torch = answers_of(TorchDecoder(decoder.model), decoder.rows, keep_logits=True)
    found = answers_of(onnx_of(decoder), decoder.rows, keep_logits=True)
    assert np.allclose(torch.tallies, found.tallies, rtol=1e-5)
    assert same_choice(torch, found) == 1.0
    assert logit_gaps(torch, found)["max_abs_diff"] < 1e-4


def test_tallies_are_those_of_serving_and_count_learned_tokens_only(llama: ExportedDecoder) -> None:
    class Encoder:
        def collate(self, rows: Any) -> dict[str, np.ndarray]:
            width = max(len(row.ids) for row in rows)
            ids, mask = np.zeros((2, len(rows), width), np.int64)
            for number, row in enumerate(rows):
                ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, 1
            return {"input_ids": ids, "attention_mask": mask, "position_ids": np.cumsum(mask, axis=1) - 1}

        def targets(self, rows: Any) -> np.ndarray:
            width = max(len(row.ids) for row in rows)
            return np.array([row.targets + [IGNORED] * (width - len(row.ids)) for row in rows])

    found = answers_of(onnx_of(llama), llama.rows)
    assert np.allclose(found.tallies, onnx_of(llama).tallies(llama.rows, Encoder(), 4), rtol=1e-6)
    learned = [sum(target != IGNORED for target in row.targets) for row in llama.rows]
    assert found.tallies[:, 1].tolist() == learned == [len(choices) for choices in found.choices]


def test_packed_documents_are_answered_as_if_each_were_alone(llama: ExportedDecoder) -> None:
    one, two = llama.rows[0], llama.rows[4]
    packed = Sequence(one.ids + two.ids, one.targets + two.targets, [0] * len(one.ids) + [1] * len(two.ids), (0, 4))
    alone, together = (answers_of(onnx_of(llama), rows) for rows in ([one, two], [packed]))
    assert np.allclose(alone.tallies.sum(axis=0), together.tallies[0])
    assert np.concatenate(alone.choices).tolist() == together.choices[0].tolist()


def test_sample_has_texts_of_all_lengths_cut_to_the_wanted_number_of_tokens() -> None:
    rows = [Sequence([5] * n, [5] * n, [0] * n, (n,)) for n in range(10, 210)]
    sample = sample_of(rows, 120)
    assert [len(row.ids) for row in sample] == [10] + [20] * 5
    assert [row.rows[0] for row in sample] == [10, 50, 90, 129, 169, 209]
    assert sample == sample_of(rows, 120)


def test_sample_of_chats_keeps_the_answers_at_their_ends() -> None:
    targets = [IGNORED] * 90 + [7] * 10
    (row,) = sample_of([Sequence(list(range(100)), targets, [0] * 100)], 20)
    assert row.ids == list(range(80, 100))
    with pytest.raises(ExportError, match="no validation text with a token to predict"):
        sample_of([Sequence([1, 2], [IGNORED] * 2, [0, 0])], 20)


def test_agreement_is_the_share_of_equal_choices_over_all_tokens() -> None:
    def answers(*choices: list[int]) -> Answers:
        return Answers(np.zeros((len(choices), 3)), tuple(np.array(each) for each in choices))

    assert same_choice(answers([1, 2, 3], [4]), answers([1, 2, 9], [4])) == 0.75


def test_fp32_and_block_forms_answer_the_same_in_any_company_and_dynamic_int8_does_not(
    llama: ExportedDecoder, tmp_path: Any
) -> None:
    assert invariances(onnx_of(llama), llama.rows, 1.0) == (True, True)
    for candidate in causal_candidates("avx2")[:3]:
        path = tmp_path / f"{candidate.way}-{candidate.fp32_products}.onnx"
        quantize_causal(llama.onnx, path, candidate)
        expected = (candidate.way == "blocks",) * 2
        assert invariances(CachedDecoder(open_session(path)), llama.rows, 1.0) == expected


def test_onnx_writes_the_same_200_tokens_as_torch_after_several_prompts(decoder: ExportedDecoder) -> None:
    prompts = [
        row.ids[:length] for row, length in zip([row for row in token_rows(24) if len(row.ids) > 20], (8, 8, 20))
    ]
    greedy = compare_greedy(TorchDecoder(decoder.model), onnx_of(decoder), prompts, 200, 1e-4)
    assert greedy.to_json() == {"prompts": 3, "tokens": 200, "identical": True, "ties": 0}
    assert greedy.passed


class Scripted:
    """Gives the same logits (B, V) at each place, whatever it reads; remembers what it read."""

    def __init__(self, *logits: list[float]) -> None:
        self.script, self.read = [np.array(each, np.float32) for each in logits], []  # type: ignore[var-annotated]

    def prefill(self, ids: np.ndarray, lengths: Any = None) -> tuple[np.ndarray, int]:
        return np.tile(self.script[0], (len(ids), 1)), 1

    def step(self, ids: np.ndarray, cache: int) -> tuple[np.ndarray, int]:
        self.read.append(ids.tolist())
        return np.tile(self.script[cache], (len(ids), 1)), cache + 1

    def logits(self, ids: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def test_another_token_than_torchs_fails_unless_the_two_are_tied() -> None:
    torch = Scripted([0, 1, 0], [2, 0, 1.9999], [0, 0, 3])
    far, near = Scripted([0, 1, 0], [1, 0, 2], [0, 0, 3]), Scripted([0, 1, 0], [1.9999, 0, 2], [0, 0, 3])
    wrong = Scripted([0, 1, 0], [2, 0, 1.9999], [9, 0, 3])
    assert compare_greedy(torch, torch, [[1], [2]], 3, 1e-4).passed
    tied = compare_greedy(torch, near, [[1], [2]], 3, 1e-4)
    assert tied.passed
    assert tied.to_json() == {"prompts": 2, "tokens": 3, "identical": False, "ties": 2}
    assert "at 2 places of the 3 tokens after each of 2 prompts, 2 of them ties within rounding" in tied.sentence()
    assert compare_greedy(torch, far, [[1]], 3, 1e-6).passed is False
    assert compare_greedy(torch, wrong, [[1]], 3, 1e-4).passed is False
    # Both read torch's tokens, so that one tie does not make everything after it incomparable.
    assert near.read[:2] == [[1, 1], [0, 0]]


@pytest.mark.parametrize("prompts", [[], [[]]])
def test_no_prompt_to_continue_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(ExportError, match="no prompts"):
        compare_greedy(Scripted([1]), Scripted([1]), prompts, 2, 1e-4)


def test_speed_is_the_median_time_to_the_first_token_and_the_rate_after_it() -> None:
    now = [0.0]

    class Timed(Scripted):
        def __init__(self, first: float, each: float) -> None:
            super().__init__(*[[0.0, 1.0]] * 9)
            self.first, self.each = first, each

        def prefill(self, ids: np.ndarray, lengths: Any = None) -> tuple[np.ndarray, int]:
            now[0] += self.first
            return super().prefill(ids)

        def step(self, ids: np.ndarray, cache: int) -> tuple[np.ndarray, int]:
            now[0] += self.each
            return super().step(ids, cache)

    forms = {"torch": Timed(0.5, 0.1), "int8": Timed(0.25, 0.05)}
    prompt = np.ones((1, 4), np.int64)
    speeds = measure_generation(forms, prompt, new_tokens=6, rounds=3, seconds=0, clock=lambda: now[0])
    assert speeds["torch"] == {
        "ms_first_token": 500.0,
        "tokens_per_second": 10.0,
        "latency_ms": {"1": 1000.0},
        "throughput": {"1": 1.0},
    }
    assert speeds["int8"]["tokens_per_second"] == 20.0
    assert len(forms["int8"].read) == 3 * 5 + 1  # and one token to warm up
