from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import MAX_LENGTH

from finetune.export.parity import (
    Batch,
    Logits,
    batch_invariant,
    check_shapes,
    differences,
    measure_latency,
    measure_speed,
    predict_rows,
)
from finetune.export.text import row_by_row, shape_examples, spread_rows
from finetune.preprocess import Encoded, TextEncoder, TextPreprocess


def own_answer(batch: Batch) -> Logits:
    """Depends on a row's own tokens only."""
    used = batch["input_ids"] * batch["attention_mask"]
    return np.stack([used.sum(axis=1), batch["attention_mask"].sum(axis=1)], axis=1).astype(np.float32)


def neighbourly_answer(batch: Batch) -> Logits:
    """Depends on the longest row of the batch, as dynamic int8 does on the largest activation."""
    return own_answer(batch) + np.float32(batch["input_ids"].shape[1])


def test_differences_measures_distance() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    other = np.array([[1.0, 0.5], [0.0, 2.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    assert differences(reference, other) == {"max_abs_diff": 3.0, "mean_abs_diff": 4.5 / 8}


def test_differences_refuses_different_shapes_and_nothing() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        differences(np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="cannot be compared"):
        differences(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))


@settings(deadline=None)
@given(batch_size=st.integers(1, 9), order=st.permutations(range(20)))
def test_predict_rows_keeps_the_order_of_the_rows(encoder: TextEncoder, batch_size: int, order: list[int]) -> None:
    rows = [Encoded([5] * (1 + index % 7) + [index + 6], [0] * (2 + index % 7), 0) for index in order]
    found = predict_rows(own_answer, encoder, rows, batch_size)
    assert found[:, 0].tolist() == [sum(row.ids) for row in rows]
    assert found[:, 1].tolist() == [len(row.ids) for row in rows]


def test_row_by_row_runs_each_row_unpadded(encoder: TextEncoder, rows: list[Encoded]) -> None:
    seen: list[tuple[int, ...]] = []

    def predict(batch: Batch) -> Logits:
        seen.append(batch["input_ids"].shape)
        return neighbourly_answer(batch)

    found = row_by_row(predict)(encoder.collate(rows[:4]))
    assert seen == [(1, len(row.ids)) for row in rows[:4]]
    assert np.array_equal(found, np.concatenate([neighbourly_answer(encoder.collate([row])) for row in rows[:4]]))


def test_row_by_row_trims_padding_on_the_left_too(tokenizer_file, rows: list[Encoded]) -> None:
    left = TextEncoder(
        tokenizer_file, TextPreprocess(MAX_LENGTH, ("input_ids", "attention_mask"), 0, padding_side="left")
    )
    shortest, longest = min(rows, key=lambda r: len(r.ids)), max(rows, key=lambda r: len(r.ids))
    assert len(shortest.ids) < len(longest.ids)
    batch = left.collate([shortest, longest])
    assert np.array_equal(row_by_row(neighbourly_answer)(batch)[:1], neighbourly_answer(left.collate([shortest])))


def test_batch_invariance_is_measured(encoder: TextEncoder, rows: list[Encoded]) -> None:
    assert batch_invariant(own_answer, encoder, rows[:6])
    assert not batch_invariant(neighbourly_answer, encoder, rows[:6])
    assert batch_invariant(row_by_row(neighbourly_answer), encoder, rows[:6])


def test_shape_examples_reach_the_shortest_and_the_longest_input(encoder: TextEncoder, rows: list[Encoded]) -> None:
    shapes = [batch["input_ids"].shape for batch in shape_examples(encoder, rows)]
    assert shapes == [(1, 2), (1, 8), (3, 8), (1, MAX_LENGTH), (2, MAX_LENGTH)]
    ragged = shape_examples(encoder, rows)[2]["attention_mask"].sum(axis=1)
    assert ragged.tolist() == [2, 8, 3]


def test_check_shapes_reports_the_worst_and_never_hides_nan(encoder: TextEncoder, rows: list[Encoded]) -> None:
    examples = shape_examples(encoder, rows)
    assert check_shapes(own_answer, own_answer, examples) == 0
    assert check_shapes(own_answer, neighbourly_answer, examples) == MAX_LENGTH
    broken = lambda batch: own_answer(batch) * np.float32("nan")  # noqa: E731
    assert check_shapes(own_answer, broken, examples) == float("inf")


def test_spread_rows_covers_all_lengths_and_repeats_when_there_are_few(
    encoder: TextEncoder, rows: list[Encoded]
) -> None:
    lengths = sorted(len(row.ids) for row in spread_rows(encoder, rows, 6))
    assert lengths[0] < 8
    assert lengths[-1] == MAX_LENGTH
    assert len(spread_rows(encoder, rows[:2], 32)) == 32
    assert spread_rows(encoder, rows, 6) == spread_rows(encoder, rows, 6)


def test_latency_is_the_median_of_turns_taken_together(encoder: TextEncoder, rows: list[Encoded]) -> None:
    now = [0.0]
    order: list[str] = []

    def form(name: str, durations: Iterator[float]):
        def predict(batch: Batch) -> Logits:
            order.append(name)
            now[0] += next(durations)
            return own_answer(batch)

        return predict

    forms = {"fast": form("fast", iter([9, 0.01, 0.01, 0.01, 5.0, 0.01])), "slow": form("slow", iter([9] + [0.02] * 5))}
    found = measure_latency(forms, [encoder.collate(rows[:1])], seconds=0.0, clock=lambda: now[0])
    assert found == pytest.approx({"fast": 10.0, "slow": 20.0})
    assert order == ["fast", "slow"] * 6


def test_speed_gives_latency_and_rows_per_second_at_both_batch_sizes(encoder: TextEncoder, rows: list[Encoded]) -> None:
    single, many = [encoder.collate([row]) for row in rows[:3]], encoder.collate(rows[:32])
    speed = measure_speed({"form": own_answer}, single, many, seconds=0.01)["form"]
    assert set(speed) == {"latency_ms", "throughput"}
    assert set(speed["latency_ms"]) == set(speed["throughput"]) == {"1", "32"}
    ratio = speed["throughput"]["32"] * speed["latency_ms"]["32"] / 32_000
    assert ratio == pytest.approx(1, rel=0.1)
