"""ResNet-20 and ResNet-32 on CIFAR-10 (as JPEG), convolutions compressed to a share of their numbers.

    python benchmarks/compress_vision.py SHARED_DATA [--keep 0.6] [--held-out]

Calibrated on 1,000 training images, without and with the sequential pass; BatchNorm stays as it is. Divergence is that
of the predictions from the original's, in nats. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from eckart.nn.blocks import WholeNetwork
from eckart.nn.calibrate import decompose
from eckart.nn.compress import low_rank_layers
from eckart.nn.plan import plan_ranks
from eckart.nn.refit import refit
from eckart.nn.surgery import replace_layer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.widens = inputs != outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widens:  # every second pixel, new channels 0
            more = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more))
        return F.relu(y + x)


class ResNet(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        sizes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        for i, (inputs, outputs, stride) in enumerate(sizes):
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(Block(inputs, outputs, stride), *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def images(file: Path, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    table = pq.read_table(file)
    rows = np.random.default_rng(0).permutation(len(table))[:count]
    pixels = [np.array(Image.open(io.BytesIO(table["jpeg"][int(i)].as_py()))) for i in rows]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    labels = torch.tensor([table["label"][int(i)].as_py() for i in rows])
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], labels


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(part) for part in x.split(500)])


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> float:
    return float(logits.argmax(1).eq(y).float().mean()) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--images", type=int, default=1000, help="training images to calibrate with, at most 3,500")
    parser.add_argument("--held-out", action="store_true", help="measure on 1,500 training images, to choose settings")
    asked = parser.parse_args()
    x, y = images(asked.data / "cifar10-jpeg" / "train_5000.parquet")
    batches = list(x[: min(asked.images, 3500)].split(125))
    if asked.held_out:
        x, y = x[3500:], y[3500:]
    else:
        x, y = images(asked.data / "cifar10-jpeg" / "test.parquet")
    result: dict[str, object] = {"keep": asked.keep, "images": len(x)}
    for name, blocks in (("resnet20", 3), ("resnet32", 5)):
        model = ResNet(blocks).eval()
        weights = np.load(asked.data / "checkpoints" / f"{name}_cifar10.npz")
        model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights.files})
        model.requires_grad_(False)
        logits = outputs(model, x)
        rows = {"dense": {"accuracy": accuracy(logits, y)}}
        # What ek.nn.compress does, with a look at the network before the sequential pass.
        with TemporaryDirectory() as folder:
            found = decompose(
                WholeNetwork(model, drawn),
                batches,
                folder,
                patterns=["*conv*"],
                gradients=len(batches),
                damping=(0.1, 0.01),
            )
            plan = plan_ranks(found.layers, asked.keep)
            new = low_rank_layers(model, found, plan)
        for row in ("compressed", "sequential"):
            if row == "sequential":
                refit(model, new, batches, 0.01)
            small = copy.deepcopy(model)
            for layer in new:
                replace_layer(small, layer, new[layer])
            small_logits = outputs(small, x)
            change = F.kl_div(
                small_logits.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean"
            )
            rows[row] = {"accuracy": accuracy(small_logits, y), "divergence": float(change)}
        rows["plan"] = {"kept": plan.keep, "predicted": plan.loss}
        print(name, rows, file=sys.stderr, flush=True)
        result[name] = rows
    print(json.dumps(result))


def drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, labels, reduction="sum")


if __name__ == "__main__":
    main()
