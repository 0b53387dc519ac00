from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data import prepare_text
from finetune.errors import DataError, SourceError
from finetune.recipe.types import DataSettings
from finetune.sources import Source

datasets = pytest.importorskip("datasets")

HUB = Source("owner/name@v1", "hub", None, revision="abc123")


def table(numbers: range, label: Any = None, labels: list[int] | None = None) -> Any:
    """A split as the hub gives it, with a ClassLabel whose order is not the alphabet's."""
    feature = label or datasets.ClassLabel(names=["positive", "negative", "never"])
    texts = [f"text number {number} of this little table" for number in numbers]
    labels = labels or [number % 2 for number in numbers]
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `load_dataset` returns in this test, and the arguments it was called with."""
    state: dict[str, Any] = {"splits": {"train": table(range(40))}}

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        state["call"] = (args, kwargs)
        if "error" in state:
            raise state["error"]
        return datasets.DatasetDict(state["splits"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_class_labels_keep_their_names_and_order(hub: dict[str, Any]) -> None:
    data = prepare_text(DataSettings(source=HUB.name, config="plain"), HUB, {}, 0)
    assert data.labels == ("positive", "negative")
    assert hub["call"] == (("owner/name", "plain"), {"revision": "abc123"})
    assert data.train.places[0].startswith("owner/name/train:")
    assert any("never" in warning for warning in data.audit["warnings"])
    for text, label in zip(data.train.texts, data.train.labels, strict=True):
        assert int(text.split()[2]) % 2 == label


@pytest.mark.parametrize(
    ("kind", "names"), [("int64", ("0", "1")), ("string", ("0", "1")), ("bool", ("False", "True"))]
)
def test_plain_values_are_labels_too(hub: dict[str, Any], kind: str, names: tuple[str, ...]) -> None:
    hub["splits"] = {"train": table(range(40), datasets.Value(kind))}
    assert prepare_text(DataSettings(source=HUB.name), HUB, {}, 0).labels == names


def test_named_hub_splits_and_shares_of_train(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(40)), "test": table(range(40, 50))}
    settings = DataSettings.model_validate(
        {"source": HUB.name, "splits": {"train": "train", "validation": 0.2, "test": "test"}}
    )
    data = prepare_text(settings, HUB, {"train": "train", "test": "test"}, 0)
    assert [len(part.texts) for part in (data.train, data.validation, data.test)] == [32, 8, 10]
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        prepare_text(settings, HUB, {"train": "train", "test": "tset"}, 0)


def test_shares_use_the_train_split_and_say_what_is_left(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(40)), "test": table(range(40, 50))}
    data = prepare_text(DataSettings(source=HUB.name), HUB, {}, 0)
    assert data.audit["rows"] == 40
    assert any("name test under data.splits" in warning for warning in data.audit["warnings"])
    hub["splits"] = {"a": table(range(40)), "b": table(range(40))}
    with pytest.raises(DataError, match="has the splits a, b"):
        prepare_text(DataSettings(source=HUB.name), HUB, {}, 0)


def test_unlabelled_rows_and_missing_columns_are_refused(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(3), labels=[0, 1, -1])}
    with pytest.raises(DataError, match="owner/name/train:3: the label is missing"):
        prepare_text(DataSettings(source=HUB.name), HUB, {}, 0)
    with pytest.raises(DataError, match=r"no column 'body' .*text, label"):
        prepare_text(DataSettings(source=HUB.name, text_column="body"), HUB, {}, 0)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach the Hub\nin two lines"),
        ValueError("BuilderConfig 'x' not found. Available: ['plain']"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"),
        RuntimeError("Dataset scripts are no longer supported"),
    ],
)
def test_hub_failures_become_one_sentence(hub: dict[str, Any], error: Exception) -> None:
    hub["error"] = error
    with pytest.raises(SourceError) as caught:
        prepare_text(DataSettings(source=HUB.name), HUB, {}, 0)
    assert str(error).split("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_without_a_cached_copy_is_a_source_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="'nobody/no-such-data' cannot be loaded from the hub"):
        prepare_text(DataSettings(source="nobody/no-such-data"), Source("nobody/no-such-data", "hub", None), {}, 0)
