"""FuxiCTR trains a task by `BaseModel.train_step` on slices of tensors in memory.

Runs in the peers' own environment. The wheel has FuxiCTR's layers and its trainer but not the two
models, so they are put together here from those layers, as FuxiCTR's model zoo does.
"""

from __future__ import annotations

import tempfile
from time import perf_counter

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.child import answer
from benchmarks.speed.task import Arrays, Task

LABEL = "label"


class _Model(BaseModel):
    """What both models share: the embedding layer, the optimizer, the loss."""

    def __init__(self, features: FeatureMap, task: Task, scratch: str):
        super().__init__(
            features,
            model_id=task.model,
            embedding_regularizer=task.fuxictr_l2 or None,
            verbose=0,
            model_root=scratch,
            metrics=["AUC"],
        )
        self._add_layers(features, task)
        self.compile("adam", "binary_crossentropy", task.learning_rate)
        self.reset_parameters()
        self._max_gradient_norm = 10.0  # the default of `fit`

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        columns = self.get_inputs(inputs)
        return {"y_pred": self.output_activation(self._logits(columns))}


class DeepFM(_Model):
    def _add_layers(self, features: FeatureMap, task: Task) -> None:
        self.embedding_layer = FeatureEmbedding(features, task.width)
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(
            input_dim=features.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=list(task.hidden),
            dropout_rates=task.dropout,
        )

    def _logits(self, columns: dict[str, Tensor]) -> Tensor:
        embedded = self.embedding_layer(columns)  # [B, F, width]
        return self.fm(columns, embedded) + self.mlp(embedded.flatten(start_dim=1))


class DCNV2(_Model):
    """Dense columns go in as they are, as in the other tools' model.

    FuxiCTR itself would give each of them an embedding, which makes for a larger model.
    """

    def _add_layers(self, features: FeatureMap, task: Task) -> None:
        self.dense = [name for name, spec in features.features.items() if spec["type"] == "numeric"]
        self.embedding_layer = FeatureEmbedding(
            features, task.width, not_required_feature_columns=self.dense
        )
        inputs = features.sum_emb_out_dim() - len(self.dense) * (task.width - 1)
        self.crossnet = CrossNetV2(inputs, task.cross_layers)
        self.mlp = MLP_Block(
            input_dim=inputs, hidden_units=list(task.hidden), dropout_rates=task.dropout
        )
        self.fc = nn.Linear(inputs + task.hidden[-1], 1)

    def _logits(self, columns: dict[str, Tensor]) -> Tensor:
        embedded = self.embedding_layer(columns, flatten_emb=True)  # [B, F * width]
        inputs = torch.cat([embedded, *(columns[name].view(-1, 1) for name in self.dense)], dim=1)
        return self.fc(torch.cat([self.crossnet(inputs), self.mlp(inputs)], dim=1))


def feature_map(arrays: Arrays, task: Task, scratch: str) -> FeatureMap:
    """FuxiCTR's description of the columns; lists are mean-pooled."""
    found = FeatureMap("task", scratch)
    found.default_emb_dim = task.width
    found.labels = [LABEL]
    for name, ids in arrays.ids.items():
        spec = {"source": "", "type": "categorical", "vocab_size": arrays.rows[name]}
        if ids.ndim == 2:
            spec |= {"type": "sequence", "padding_idx": 0, "max_len": ids.shape[1]}
            spec["feature_encoder"] = "layers.MaskedAveragePooling()"
        found.features[name] = spec
    for name in arrays.dense:
        found.features[name] = {"source": "", "type": "numeric"}
    found.num_fields = found.get_num_fields()
    found.set_column_index()
    return found


def main() -> None:
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    steps = task.warm_up_steps + task.steps
    arrays = Arrays.load(task.folder).repeated(steps * task.batch_rows)
    columns = {
        name: torch.from_numpy(values)
        for name, values in (arrays.ids | arrays.dense | {LABEL: arrays.labels}).items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        kind = {"deepfm": DeepFM, "dcnv2": DCNV2}[task.model]
        model = kind(feature_map(arrays, task, scratch), task, scratch)
    model.train()
    for step in range(steps):
        if step == task.warm_up_steps:
            began = perf_counter()
        batch = slice(step * task.batch_rows, (step + 1) * task.batch_rows)
        model.train_step({name: values[batch] for name, values in columns.items()}).item()
    seconds = perf_counter() - began
    parameters = sum(parameter.numel() for parameter in model.parameters())
    answer(rows=task.steps * task.batch_rows, seconds=seconds, parameters=parameters)


if __name__ == "__main__":
    main()
