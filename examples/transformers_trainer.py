"""A mask in Hugging Face's Trainer: fine-tune a net of Transformers, prune it, rewind, fine-tune the ticket.

The net is made up and tiny, and its sentences are numbers, so that this runs in seconds without a download; with
AutoModelForSequenceClassification.from_pretrained(...) and a data set of yours it is the same.

Run it with: python examples/transformers_trainer.py
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import copy
import tempfile

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

import tombola as tb
from tombola.integrations.trainer import MaskCallback


def sentences(count: int, seed: int) -> list[dict[str, Tensor]]:
    """Fifteen tokens each; the class says whether most of them are from the upper half of the vocabulary."""
    ids = torch.randint(2, 12, (count, 15), generator=torch.Generator().manual_seed(seed))
    upper = (ids > 6).sum(dim=1) > 7
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, upper.long(), strict=True)]


def fine_tuned(model: BertForSequenceClassification, *callbacks: MaskCallback) -> float:
    """Train for a while, as the Trainer does it; the accuracy on other sentences."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=100,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            weight_decay=0.01,
            use_cpu=True,
            seed=0,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, arguments, train_dataset=sentences(2000, seed=1), callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    test = sentences(500, seed=2)
    ids, labels = (torch.stack([example[name] for example in test]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        return float((model.eval()(input_ids=ids).logits.argmax(dim=1) == labels).float().mean())


torch.manual_seed(0)
torch.set_num_threads(1)
config = BertConfig(
    vocab_size=12,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
)
model = BertForSequenceClassification(config)
begin = copy.deepcopy(model.state_dict())  # of a real net: its pre-trained values

print(f"dense net: accuracy {fine_tuned(model):.3f}")
scores = {name: score for name, score in tb.score(model, "magnitude").items() if ".encoder." in name}
mask = tb.prune(scores, density=0.5)  # the larger half of the encoder's weights; head and embeddings stay whole
print(f"mask: {mask.kept} of {mask.total} kept")

model.load_state_dict(begin)  # rewind
print(f"ticket: accuracy {fine_tuned(model, MaskCallback(mask)):.3f}")
covered = mask.parameters(model)
print(f"after training: {sum(int((w == 0).sum()) for w in covered.values())} zeros, {mask.total - mask.kept} pruned")
