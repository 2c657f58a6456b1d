"""A script as people have it: a tiny BERT in a LightningModule, dict batches that a collate function pads."""

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import BatchEncoding, BertConfig, BertForSequenceClassification

SEEN = []  # what this test looks at: the lengths of the batches that forward gets


class MyModule(LightningModule):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            num_labels=3,
            classifier_dropout=0.5,
        )
        self.model = BertForSequenceClassification(config)

    def forward(self, **inputs):
        SEEN.append((self.training, tuple(sorted(inputs)), inputs["input_ids"].shape[1]))
        return self.model(**inputs)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx):
        outputs = self.model(**batch)
        self.log("val_loss", outputs.loss, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def collate(items):
    ids = [torch.tensor(item["input_ids"]) for item in items]
    return BatchEncoding(
        {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.tensor([item["label"] for item in items]),
        }
    )


class MyDataModule(LightningDataModule):
    def setup(self, stage):
        def text(index):
            kind, length = index % 3, 2 + index % 5
            return {"input_ids": [1] + [2 + 5 * kind + (index + at) % 5 for at in range(length)], "label": kind}

        self.train_set, self.val_set = [text(index) for index in range(60)], [text(index) for index in range(60, 80)]

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=4, shuffle=True, collate_fn=collate)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=4, collate_fn=collate)


seed_everything(0, verbose=False)
model = MyModule()
trainer = Trainer(
    accelerator="cpu",
    max_epochs=2,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[],
)
datamodule = MyDataModule()
trainer.fit(model, datamodule)
