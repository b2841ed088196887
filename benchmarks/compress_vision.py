"""ResNet-20 and ResNet-32 on CIFAR-10 (as JPEG), convolutions compressed to a share of their numbers.

    python benchmarks/compress_vision.py SHARED_DATA [--keep 0.6]

Calibrated on 512 training images; BatchNorm statistics are estimated again on 2,000. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import eckart as ek

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
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.cat([model(part).argmax(1) for part in x.split(500)]).eq(y).float().mean()) * 100


@torch.no_grad()
def estimate_again(model: nn.Module, x: torch.Tensor) -> None:
    """Means and variances of BatchNorm over what now reaches them."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for part in x.split(250):
        model(part)
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--keep", type=float, default=0.6)
    asked = parser.parse_args()
    train, _ = images(asked.data / "cifar10-jpeg" / "train_5000.parquet", 2000)
    test, labels = images(asked.data / "cifar10-jpeg" / "test.parquet")
    result: dict[str, object] = {"keep": asked.keep, "test_images": len(test)}
    for name, blocks in (("resnet20", 3), ("resnet32", 5)):
        model = ResNet(blocks).eval()
        weights = np.load(asked.data / "checkpoints" / f"{name}_cifar10.npz")
        model.load_state_dict({key: torch.from_numpy(weights[key]) for key in weights.files})
        model.requires_grad_(False)
        rows = {"dense": accuracy(model, test, labels)}
        found = ek.nn.compress(
            model, list(train[:512].split(128)), asked.keep, patterns=["*conv*"], draw=drawn, gradients=4
        )
        rows |= {"kept": found.keep, "compressed": accuracy(model, test, labels)}
        estimate_again(model, train)
        rows["norms estimated again"] = accuracy(model, test, labels)
        result[name] = rows
    print(json.dumps(result))


def drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, labels, reduction="sum")


if __name__ == "__main__":
    main()
