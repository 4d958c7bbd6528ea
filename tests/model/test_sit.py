"""SiT's checkpoints: DiT's names, another objective. The velocity is computed again here, from the formulas alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.cli import main as cli
from harness.data.draws import Normals
from harness.diffusion.guidance import guided
from harness.diffusion.objective import build
from harness.errors import InputError
from harness.evaluation.export import export, import_weights
from harness.evaluation.sample import Sampler
from harness.model.dit import DiT
from harness.model.official import from_official, read_official, to_official
from harness.runs.cellruns import cell_runs
from harness.runs.study import Shared, Study
from harness.spec.data import InputShape
from harness.spec.diffusion import spec_of
from harness.spec.model import DiTSpec
from harness.training import checkpoint
from sweeps.grid import load_sweep

MODEL, SHAPE = DiTSpec(depth=2, width=24, heads=3, patch_size=2), InputShape(4, 8, 5)

SWEEP = """
[grid]
objective = ["flow"]
[model]
depth = 1
width = 16
heads = 2
patch_size = 4
[training]
steps = 7
"""


def random_sit(model: DiTSpec = MODEL, shape: InputShape = SHAPE) -> DiT:
    """Every parameter drawn at random with about the size a trained one has, so that no part is silent."""
    network, generator = DiT(model, shape).eval().requires_grad_(False), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(0, 0.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return network


def sit_velocity(state: dict[str, Tensor], heads: int, x: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """dx/ds of SiT at its own times s (1: data, 0: noise), float64, from a checkpoint's tensors.

    The sinusoids of time are float32, as in the published code, which makes them so in every model.
    """
    w = {name: tensor.double() for name, tensor in state.items()}

    def linear(name: str, v: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", v, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def silu(v: Tensor) -> Tensor:
        return v / (1 + torch.exp(-v))

    def modulated(v: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    kernel = w["x_embedder.proj.weight"]
    p, (n, channels, size, _) = kernel.shape[-1], x.shape
    side = size // p
    patches = x.reshape(n, channels, side, p, side, p)
    h = torch.einsum("ncipjq,dcpq->nijd", patches, kernel).flatten(1, 2) + w["x_embedder.proj.bias"] + w["pos_embed"]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = s.float()[:, None] * frequencies
    vectors = torch.cat((torch.cos(angles), torch.sin(angles)), 1).double()
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", vectors)))
    c = silu(c + w["y_embedder.embedding_table.weight"][y])
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    for name in (f"blocks.{i}" for i in range(depth)):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{name}.adaLN_modulation.1", c).chunk(6, 1)
        qkv = linear(f"{name}.attn.qkv", modulated(h, shift1, scale1)).unflatten(2, (3, heads, -1))
        q, k, v = qkv.unbind(2)  # (n, tokens, heads, channels)
        weights = torch.einsum("nthc,nuhc->nhtu", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        h = h + gate1[:, None] * linear(f"{name}.attn.proj", torch.einsum("nhtu,nuhc->nthc", weights, v).flatten(2))
        inner = linear(f"{name}.mlp.fc1", modulated(h, shift2, scale2))
        inner = inner / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        h = h + gate2[:, None] * linear(f"{name}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    out = linear("final_layer.linear", modulated(h, shift, scale)).reshape(n, side, side, p, p, 2 * channels)
    return torch.einsum("nijpqc->ncipjq", out).reshape(n, 2 * channels, size, size)[:, :channels]


def test_the_velocity_is_that_of_sits_formulas_at_its_times() -> None:
    network, generator = random_sit(), torch.Generator().manual_seed(1)
    state, flow = to_official(network), build(spec_of("flow")(objective="flow"))
    x0, noise = (torch.randn(3, *SHAPE[:1], 8, 8, generator=generator) for _ in range(2))
    s, y = torch.tensor([0.0, 0.31, 1.0]), torch.tensor([0, 4, SHAPE.classes])
    xs = flow.noised(x0, s, noise)
    assert torch.allclose(xs[1], 0.31 * x0[1] + 0.69 * noise[1], atol=1e-6)  # data at 1, noise at 0
    assert torch.equal(flow.target(x0, noise), x0 - noise)
    found = network.double()(xs.double(), s, y)[:, : SHAPE.channels]
    expected = sit_velocity(state, MODEL.heads, xs.double(), s, y)
    assert float((found - expected).abs().max()) <= 1e-12
    assert float(expected.abs().mean()) > 0.1


def test_a_checkpoint_goes_in_and_out_bit_equal(tmp_path: Path) -> None:
    state = to_official(random_sit())
    torch.save(state, tmp_path / "sit.pt")
    back = to_official(read_official(tmp_path / "sit.pt", heads=MODEL.heads).build())
    assert state.keys() == back.keys()
    assert all(torch.equal(state[name], back[name]) for name in state)


def study(folder: Path) -> tuple[Study, DiT]:
    """A study of one flow cell with random weights."""
    (folder / "s.toml").write_text(SWEEP)
    sweep = load_sweep(folder / "s.toml")
    found = Study(folder / "results", "s")
    (item,) = cell_runs(sweep, found)
    network = random_sit(item.cell.model, item.cell.data.shape)  # type: ignore[arg-type]
    tensors = {
        f"{part}.{name}": value.clone() for part in ("model", "ema") for name, value in network.state_dict().items()
    }
    checkpoint.save(item.run.weights_file(7), tensors, {"step": 7, "cell": item.cell.id})
    return found, network


def test_a_flow_cell_is_exported_as_sit_and_imported_as_flow(tmp_path: Path) -> None:
    found, network = study(tmp_path)
    (item,) = cell_runs(load_sweep(tmp_path / "s.toml"), found)
    shared = Shared(tmp_path / "results")
    assert export(item, tmp_path / "sit.pt", "official", shared=shared, sweep="s") == ""
    assert all(
        torch.equal(value, network.state_dict()[name])
        for name, value in from_official(torch.load(tmp_path / "sit.pt"), heads=2).state.items()
    )
    with pytest.raises(InputError, match=r"--format: diffusers holds no model of objective flow; allowed: official"):
        export(item, tmp_path / "folder", "diffusers", shared=shared, sweep="s")
    import_weights(tmp_path / "sit.pt", tmp_path / "sit.safetensors", heads=2, objective="flow")
    sampler = Sampler.of_checkpoint(tmp_path / "sit.safetensors", shared, vae=None)
    assert sampler.diffusion == item.cell.diffusion
    # what is sampled is the ODE of the independent velocity
    noise = torch.from_numpy(Normals("test-sit", 0).rows(slice(0, 2), (1, 8, 8)))
    y, state, x = torch.tensor([1, 2]), torch.load(tmp_path / "sit.pt"), noise.double()
    for step in range(3):
        x = x + sit_velocity(state, 2, x, torch.full((2,), step / 3), y) / 3
    sampled = build(sampler.diffusion).sample("euler", guided(sampler.network, y, 1.0), noise, 3, lambda step: noise)
    assert torch.allclose(sampled.double(), x, atol=1e-5)


@pytest.mark.parametrize("objective", ["sit", "straight"])
def test_an_objective_that_the_format_does_not_hold_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    torch.save(to_official(random_sit()), tmp_path / "sit.pt")
    output = tmp_path / "out.safetensors"
    arguments = ["import", str(tmp_path / "sit.pt"), "--output", str(output), "--heads", "3", "--objective", objective]
    monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"--objective: '{objective}'; allowed with the official format: ddpm-hybrid, flow" in capsys.readouterr().err
    assert not output.exists()
