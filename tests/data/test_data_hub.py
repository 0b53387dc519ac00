from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pictures import encoded, picture

from finetune.data import prepare_data
from finetune.errors import DataError, SourceError
from finetune.preprocess import Conversation
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TASKS

datasets = pytest.importorskip("datasets")

TEXT = TASKS["text_classification"]
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
    data = prepare_data(TEXT, DataSettings(source=HUB.name, config="plain"), HUB, {}, 0)
    assert data.labels == ("positive", "negative")
    assert hub["call"] == (("owner/name", "plain"), {"revision": "abc123"})
    assert data.train.places[0].startswith("owner/name/train:")
    assert any("never" in warning for warning in data.audit["warnings"])
    for text, label in zip(data.train.inputs, data.train.labels, strict=True):
        assert int(text.split()[2]) % 2 == label


@pytest.mark.parametrize(
    ("kind", "names"), [("int64", ("0", "1")), ("string", ("0", "1")), ("bool", ("False", "True"))]
)
def test_plain_values_are_labels_too(hub: dict[str, Any], kind: str, names: tuple[str, ...]) -> None:
    hub["splits"] = {"train": table(range(40), datasets.Value(kind))}
    assert prepare_data(TEXT, DataSettings(source=HUB.name), HUB, {}, 0).labels == names


def test_weights_may_follow_from_the_names_of_a_class_label(hub: dict[str, Any]) -> None:
    settings = DataSettings(source=HUB.name, weight_column="label", weight_map={"positive": 1.0, "negative": 0.5})
    train = prepare_data(TEXT, settings, HUB, {}, 0).train
    assert train.weights is not None
    shares = (train.weights / train.weights.max()).tolist()
    assert shares == [0.5 if label else 1.0 for label in train.labels]


def test_named_hub_splits_and_shares_of_train(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(40)), "test": table(range(40, 50))}
    settings = DataSettings.model_validate(
        {"source": HUB.name, "splits": {"train": "train", "validation": 0.2, "test": "test"}}
    )
    data = prepare_data(TEXT, settings, HUB, {"train": "train", "test": "test"}, 0)
    assert [len(part.inputs) for part in (data.train, data.validation, data.test)] == [32, 8, 10]
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        prepare_data(TEXT, settings, HUB, {"train": "train", "test": "tset"}, 0)


def test_shares_use_the_train_split_and_say_what_is_left(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(40)), "test": table(range(40, 50))}
    data = prepare_data(TEXT, DataSettings(source=HUB.name), HUB, {}, 0)
    assert data.audit["rows"] == 40
    assert any("name test under data.splits" in warning for warning in data.audit["warnings"])
    hub["splits"] = {"a": table(range(40)), "b": table(range(40))}
    with pytest.raises(DataError, match="has the splits a, b"):
        prepare_data(TEXT, DataSettings(source=HUB.name), HUB, {}, 0)


def test_unlabelled_rows_and_missing_columns_are_refused(hub: dict[str, Any]) -> None:
    hub["splits"] = {"train": table(range(3), labels=[0, 1, -1])}
    with pytest.raises(DataError, match="owner/name/train:3: the label is missing"):
        prepare_data(TEXT, DataSettings(source=HUB.name), HUB, {}, 0)
    with pytest.raises(DataError, match=r"no column 'body' .*text, label"):
        prepare_data(TEXT, DataSettings(source=HUB.name, text_column="body"), HUB, {}, 0)


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
        prepare_data(TEXT, DataSettings(source=HUB.name), HUB, {}, 0)
    assert str(error).split("\n")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_without_a_cached_copy_is_a_source_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="'nobody/no-such-data' cannot be loaded from the hub"):
        prepare_data(
            TEXT, DataSettings(source="nobody/no-such-data"), Source("nobody/no-such-data", "hub", None), {}, 0
        )


def image_table(numbers: range) -> Any:
    """A split with an Image column, as the hub has it: encoded bytes and a name."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
    files = [{"bytes": encoded(picture(number)), "path": f"{number}.png"} for number in numbers]
    labels = [1 - number % 2 for number in numbers]
    return datasets.Dataset.from_dict({"image": files, "label": labels}, features=features)


def test_images_stay_encoded_until_we_open_them(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub["splits"] = {"train": image_table(range(40))}

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("the library must not decode: it turns and converts in ways of its own")

    monkeypatch.setattr(datasets.Image, "decode_example", decode)
    data = prepare_data(TASKS["image_classification"], DataSettings(source=HUB.name), HUB, {}, 0)
    assert data.labels == ("odd", "even")
    assert data.audit["images"]["sizes"] == {"48x40": 40}
    assert data.train.places[0].startswith("owner/name/train:")
    assert {item.data for item in data.train.inputs} <= {encoded(picture(number)) for number in range(40)}
    assert data.train.labels.tolist() == [
        1 - int(place.partition("(")[2].partition(".")[0]) % 2 for place in data.train.places
    ]


def test_paths_in_a_hub_table_need_a_root(hub: dict[str, Any], tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Value("string"), "label": datasets.Value("string")})
    rows = {"image": [f"{n}.png" for n in range(40)], "label": ["ab"[n % 2] for n in range(40)]}
    hub["splits"] = {"train": datasets.Dataset.from_dict(rows, features=features)}
    with pytest.raises(DataError, match=r"owner/name/train:1 \(0\.png\): the path is relative.*set data\.image_root"):
        prepare_data(TASKS["image_classification"], DataSettings(source=HUB.name), HUB, {}, 0)
    for number in range(40):
        picture(number).save(tmp_path / f"{number}.png")
    settings = DataSettings(source=HUB.name, image_root=str(tmp_path))
    assert prepare_data(TASKS["image_classification"], settings, HUB, {}, 0).audit["rows_used"] == 40


def test_lists_of_class_labels_keep_their_names(hub: dict[str, Any]) -> None:
    names = datasets.ClassLabel(names=["wet", "cold"])
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(names)})
    rows = {
        "text": [f"text number {n} of many" for n in range(60)],
        "label": [[[], [0], [0, 1]][n % 3] for n in range(60)],
    }
    hub["splits"] = {"train": datasets.Dataset.from_dict(rows, features=features)}
    data = prepare_data(TASKS["text_multi_label_classification"], DataSettings(source=HUB.name), HUB, {}, 0)
    assert data.labels == ("wet", "cold")
    assert (data.audit["labels"], data.audit["without_label"]) == ({"wet": 40, "cold": 20}, 20)


@pytest.mark.parametrize("kind", ["list of structs", "struct of lists"])
def test_conversations_of_the_hub_are_read_however_they_are_kept(hub: dict[str, Any], kind: str) -> None:
    chats = [[("user", f"question {number}"), ("assistant", f"text {number} of this table")] for number in range(20)]
    messages: list[Any] = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    if kind == "struct of lists":
        messages = [{"role": [role for role, _ in chat], "content": [said for _, said in chat]} for chat in chats]
    hub["splits"] = {"train": datasets.Dataset.from_dict({"messages": messages})}
    data = prepare_data(TASKS["causal_lm"], DataSettings(source=HUB.name, messages_column="messages"), HUB, {}, 0)
    found = [item for part in (data.train, data.validation, data.test) for item in part.inputs]
    assert sorted(found, key=str) == sorted((Conversation(tuple(chat)) for chat in chats), key=str)
