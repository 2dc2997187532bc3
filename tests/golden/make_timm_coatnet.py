"""Makes timm_coatnet.npz and tensors.pth: what timm's CoAtNets compute with weights that follow from their names.

Made with torch 2.13.0 (CPU) and timm 1.0.31, in an environment of their own (`pip install torch==2.13.0 safetensors
huggingface_hub pyyaml`, `pip install --no-deps timm`; torchvision is not needed, its names are stubbed):
    python make_timm_coatnet.py
The npz holds, for each case, `<case>/features` (pooled and normalised, [2, D]), `<case>/logits` ([2, 7]) and
`<case>/map` (the last map's first picture's mean over channels, which tells where a difference sits). The weights are
those of timm_weights.py; the test makes them again.
"""

import dataclasses
import importlib.machinery
import pathlib
import sys
import unittest.mock

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from timm_weights import pictures, weight

CLASSES = 7


def _without_torchvision():
    """timm imports torchvision for its data transforms, of which nothing is used here."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".datasets.folder", ".ops", ".ops.misc",
                 ".models", ".models.feature_extraction"):  # fmt: skip
        module = unittest.mock.MagicMock()
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec("torchvision" + name, None, is_package=True)
        sys.modules["torchvision" + name] = module


try:
    import torchvision  # noqa: F401
except ImportError:
    _without_torchvision()

from timm.models import maxxvit  # noqa: E402 (after the stand-in for torchvision)

TINY = maxxvit.MaxxVitCfg(
    embed_dim=(32, 32, 64, 96), depths=(1, 2, 2, 1), stem_width=16, head_hidden_size=96
)  # 32 -> 32 in stage 1 to 2: a shortcut without a projection


def cases():
    """name -> (configuration, picture size, further arguments)."""
    tensorflow = maxxvit._tf_cfg()
    flat = tensorflow | {
        "transformer_cfg": dataclasses.replace(tensorflow["transformer_cfg"], rel_pos_type="bias")
    }
    found = {
        "tiny": (dataclasses.replace(TINY, **tensorflow, stem_bias=True), (96, 64)),
        "tiny_flat": (dataclasses.replace(TINY, **flat), (96, 64)),
    }
    for number in range(4):
        name = f"coatnet_{number}"
        found[name] = (dataclasses.replace(maxxvit.model_cfgs[name], **tensorflow), (64, 64))
    return found


def run(configuration, size) -> dict[str, np.ndarray]:
    """The arrays of one case."""
    model = maxxvit.MaxxVit(configuration, img_size=size, num_classes=CLASSES).eval()
    state = {
        name: torch.from_numpy(weight(name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
        if not name.endswith("relative_position_index")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("relative_position_index") for name in missing)
    with torch.no_grad():
        images = torch.from_numpy(pictures(*size).transpose(0, 3, 1, 2).copy())
        last = model.forward_features(images)
        pooled = last.mean((2, 3)) if not configuration.head_hidden_size else None
        features = (
            pooled
            if pooled is not None
            else model.head.flatten(model.head.norm(model.head.global_pool(last)))
        )
        logits = model.forward_head(last)
    return {"features": features.numpy(), "logits": logits.numpy(), "map": last[0].mean(0).numpy()}


def tensors(path: pathlib.Path) -> None:
    """A file as people save them: a state dict inside a dict, every type, views, a parameter."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    state = {
        "float": base,
        "transposed": base.t(),
        "cut": base[1:3, ::2],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "double": base.double(),
        "parameter": torch.nn.Parameter(base * 2),
        "count": torch.tensor(1000),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }
    module = torch.nn.Linear(2, 3)
    with torch.no_grad():
        module.weight.copy_(base[:3, :2])
        module.bias.copy_(base[0, :3])
    torch.save({"epoch": 3, "arch": "linear", "state_dict": module.state_dict() | state}, path)


def main():
    """Writes both files beside this script."""
    torch.set_num_threads(1)
    folder = pathlib.Path(__file__).parent
    tensors(folder / "tensors.pth")
    arrays = {}
    for name, (configuration, size) in cases().items():
        arrays |= {f"{name}/{key}": value for key, value in run(configuration, size).items()}
        print(
            name,
            {key: float(np.abs(arrays[f"{name}/{key}"]).max()) for key in ("features", "logits")},
            flush=True,
        )
    np.savez_compressed(folder / "timm_coatnet.npz", **arrays)


if __name__ == "__main__":
    main()
