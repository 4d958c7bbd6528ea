"""Autoencoders: the trainer and its resume, the arrays in and out, and finding a pretrained one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import autoencoders
from harness.data.dataset import Images, LoadedData, Source
from harness.data.latents import check_ready, open_latents
from harness.data.shards import Shards
from harness.data.sources import load
from harness.data.vae import Autoencoder, build, decoder
from harness.errors import CellFailedError, InputError, NonFiniteError
from harness.evaluation.features import Extraction
from harness.evaluation.reconstruction import reconstruction, save_reconstructions
from harness.launch.encoding import encode_shards
from harness.processes import exclusive
from harness.runs.study import Shared
from harness.spec.data import Data, InputShape, TrainedVae
from harness.training.conditions import numeric_conditions
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.ranks import Ranks
from harness.training.vae import train_vae

torch.set_num_threads(1)

RECIPE = {"kind": "trained", "factor": 2, "channels": 3, "width": 8, "steps": 8, "batch_size": 8}


def extractions() -> list[Extraction]:
    return [Extraction("digits-cnn")]


def data_with(**changes: Any) -> Data:
    return Data.model_validate({"name": "digits", "vae": {**RECIPE, **changes}})


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    whole = load(Data())
    return LoadedData(
        whole.name,
        Images(whole.train.images[np.arange(400)], whole.train.labels[:400]),
        Images(whole.heldout.images[np.arange(64)], whole.heldout.labels[:64]),
        whole.fingerprint,
    )


def go(data: Data, digits: LoadedData, folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    seen = {"step": 0}

    def report(value: Report) -> None:
        if value["stage"] == "train-vae":
            seen["step"] = value["done"]

    folder.mkdir(parents=True, exist_ok=True)
    hooks = Hooks(should_stop=lambda: stop_at is not None and seen["step"] + 1 >= stop_at, report=report)
    return train_vae(
        data,
        digits,
        folder,
        device="cpu",
        conditions=numeric_conditions(1, 1, "cpu"),
        measure=lambda trained: reconstruction(trained, digits, extractions(), "cpu", hooks),
        checkpoint_seconds=1e9,
        hooks=hooks,
    )


def files(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {p.name: p.read_bytes() for p in folder.iterdir()}
    card = json.loads(found[autoencoders.CARD])
    found[autoencoders.CARD] = {k: v for k, v in card.items() if k != "train_seconds"}
    return found


def test_an_interrupted_training_ends_with_the_same_bytes(tmp_path: Path, digits: LoadedData) -> None:
    data = data_with()
    name = data.encoding_name
    whole, broken = tmp_path / "whole" / name, tmp_path / "broken" / name
    card = go(data, digits, whole)
    for stop_at in (1, 3, 7):
        with pytest.raises(StoppedError, match=f"step {stop_at} of 8"):
            go(data, digits, broken, stop_at)
        assert not (broken / autoencoders.CARD).exists()
    go(data, digits, broken)
    assert files(whole) == files(broken)
    assert set(files(whole)) == {autoencoders.CARD, autoencoders.CONFIG, autoencoders.WEIGHTS}
    assert card["id"] in name
    assert card["weights"] == autoencoders.weights_hash(whole)
    (label,) = card["reconstruction"]["distances"]
    assert label.startswith("digits-cnn@")
    assert card["reconstruction"]["distances"][label]["held-out"] > 0


def test_a_torn_state_begins_anew(tmp_path: Path, digits: LoadedData) -> None:
    data = data_with()
    with pytest.raises(StoppedError):
        go(data, digits, tmp_path / "a", stop_at=3)
    state = tmp_path / "a" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    go(data, digits, tmp_path / "a")
    go(data, digits, tmp_path / "b")
    assert (tmp_path / "a" / autoencoders.WEIGHTS).read_bytes() == (tmp_path / "b" / autoencoders.WEIGHTS).read_bytes()


def test_training_brings_the_error_down(tmp_path: Path, digits: LoadedData) -> None:
    short = go(data_with(steps=2), digits, tmp_path / "short")["reconstruction"]
    longer = go(data_with(steps=80, width=4, learning_rate=1e-2), digits, tmp_path / "longer")["reconstruction"]
    assert longer["psnr"] > short["psnr"] + 2
    assert longer["mean_absolute_error"] < 0.7 * short["mean_absolute_error"]


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path, digits: LoadedData) -> None:
    with pytest.raises(CellFailedError, match=r"became (nan|inf) at step \d+"):
        go(data_with(learning_rate=1e30, steps=30), digits, tmp_path / "a")
    assert not (tmp_path / "a" / autoencoders.CARD).exists()


def test_an_autoencoder_that_diverges_in_its_last_step_is_not_kept(tmp_path: Path, digits: LoadedData) -> None:
    with pytest.raises(NonFiniteError, match=r"autoencoder after step 1 \(lower .*: \d+ of \d+ values are not finite"):
        go(data_with(learning_rate=1e39, steps=1), digits, tmp_path / "a")
    with pytest.raises(NonFiniteError, match=r"\d+ of 25 (latents of|reconstructed) held-out images are not finite"):
        go(data_with(learning_rate=1e20, steps=1), digits, tmp_path / "b")  # finite weights
    for name in "ab":
        assert not (tmp_path / name / autoencoders.CARD).exists()


def test_an_autoencoder_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    network = build(TrainedVae(kind="trained", factor=2, width=4, channels=2), InputShape(1, 8, 10))
    network.save_pretrained(tmp_path / "whole", safe_serialization=True)
    Autoencoder.load(tmp_path / "whole", "cpu")
    network.encoder.conv_in.bias.data[0] = torch.nan
    network.save_pretrained(tmp_path / "nan", safe_serialization=True)
    with pytest.raises(
        InputError, match=r"nan: 1 of 10571 values are not finite \(NaN or infinite\), in encoder\.conv_in\.bias"
    ):
        Autoencoder.load(tmp_path / "nan", "cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("factor", "width"), [(2, 4), (4, 12), (8, 6)])
def test_every_shape_fits_what_it_says(channels: int, factor: int, width: int) -> None:
    spec = TrainedVae(kind="trained", factor=factor, width=width, channels=5)
    network = build(spec, InputShape(channels, 16, 10))
    autoencoder = Autoencoder(network, "cpu")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, channels), np.uint8)
    moments = autoencoder.moments(images)
    assert moments.shape == (3, 2, 5, 16 // factor, 16 // factor)
    assert (moments[:, 1] > 0).all()
    assert autoencoder.decode(torch.from_numpy(moments[:, 0]), 2.0).shape == (3, channels, 16, 16)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (build(TrainedVae(kind="trained", width=4, seed=s), InputShape(1, 8, 10)) for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    again = build(TrainedVae(kind="trained", width=4), InputShape(1, 8, 10))
    weights = [next(iter(n.parameters())) for n in (one, two, again)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def pretrained(name: str, folder: Path, size: int = 16, **config: Any) -> Data:
    """A folder as diffusers writes a pretrained autoencoder for RGB images, and the data that names it."""
    build(TrainedVae(kind="trained", factor=2, width=4), InputShape(3, size, 3)).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    vae = {"kind": "pretrained", "name": name, "factor": 2}
    return Data.model_validate(
        {"name": "folder", "resolution": size, "classes": 2, "fingerprint": "0123456789ab", "vae": vae}
    )


def rgb(count: int) -> Images:
    rng = np.random.default_rng(count)
    return Images(rng.integers(0, 256, (count, 16, 16, 3), np.uint8), rng.integers(0, 2, count))


def test_a_pretrained_folder_encodes_and_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of ImageNet, at 16 pixels: a diffusers folder by its hub name, its fixed scaling, its decoder."""
    shared = Shared(tmp_path)
    data = pretrained("someone/vae", shared.vae_folder("someone/vae"))
    folder = autoencoders.find(data, shared, "s.toml")
    autoencoder = Autoencoder.load(folder, "cpu")
    images = LoadedData("folder", rgb(40), rgb(5), "0123456789ab")
    weights = autoencoders.weights_hash(folder)
    monkeypatch.setattr("harness.data.shards.SHARD", 16)
    shards = Shards(data, images, shared, weights=weights, conditions={}, sweep="s.toml")
    encode_shards(shards, autoencoder.moments, Ranks(), Hooks())
    check_ready(data, shared, "s.toml")
    latents = open_latents(data, shared)
    assert latents.scaling == 0.18215
    from diffusers import AutoencoderKL

    reference = AutoencoderKL.from_pretrained(folder).eval()
    x = torch.from_numpy(images.train.array()[:3]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = reference.encode(x).latent_dist
        mirrored = reference.encode(x.flip(-1)).latent_dist
        back = reference.decode(posterior.mean).sample
    mean, std = latents.train.moments(np.arange(3), np.zeros(3, bool))
    assert mean == pytest.approx(posterior.mean.numpy(), abs=1e-5)
    assert std == pytest.approx(posterior.std.numpy(), rel=1e-4)
    assert latents.train.moments(np.arange(3), np.ones(3, bool))[0] == pytest.approx(mirrored.mean.numpy(), abs=1e-5)
    decoded = decoder(data, shared, "cpu")(torch.from_numpy(mean) * 0.18215)
    assert decoded.numpy() == pytest.approx(back.numpy(), abs=1e-4)


def test_other_weights_than_the_latents_were_made_by_do_not_decode_them(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    data = pretrained("someone/vae", shared.vae_folder("someone/vae"))
    images = LoadedData("folder", rgb(4), rgb(2), "0123456789ab")
    autoencoder = Autoencoder.load(shared.vae_folder("someone/vae"), "cpu")
    shards = Shards(data, images, shared, weights="0" * 12, conditions={}, sweep="s.toml")
    encode_shards(shards, autoencoder.moments, Ranks(), Hooks())
    with pytest.raises(InputError, match="not the VAE that made the latents"):
        decoder(data, shared, "cpu")
    with pytest.raises(InputError, match="encoded by another VAE"):
        check_ready(data, shared, "s.toml")


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    data = pretrained("someone/vae", shared.vae_folder("someone/vae"))
    (shared.vae_folder("someone/vae") / autoencoders.WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=r"holds no diffusion_pytorch_model.safetensors \(diffusers' format"):
        autoencoders.find(data, shared, "s.toml")


def test_a_grey_data_set_and_a_vae_for_colours_do_not_fit(tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    vae = pretrained("rgb", shared.vae_folder("rgb"), size=32).vae
    with pytest.raises(InputError, match=r"images' channels 1, but .* has 3"):
        autoencoders.find(Data(name="fashion-mnist", vae=vae), shared, "s.toml")


def test_damaged_weights_of_a_trained_vae_are_found(tmp_path: Path, digits: LoadedData) -> None:
    shared, data = Shared(tmp_path), data_with(steps=1)
    folder = shared.vae_folder(data.encoding_name)
    with pytest.raises(InputError, match=r"not trained yet; first: dit-harness train-vae s.toml"):
        autoencoders.find(data, shared, "s.toml")
    go(data, digits, folder)
    assert autoencoders.find(data, shared, "s.toml") == folder
    (folder / autoencoders.WEIGHTS).write_bytes(b"x")
    with pytest.raises(InputError, match="damaged"):
        autoencoders.find(data, shared, "s.toml")


@pytest.mark.parametrize("download", [False, True])
def test_without_a_network_the_message_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    asked = []

    def refuse(url: str, timeout: float) -> Any:
        asked.append((url, timeout))
        raise OSError("[Errno 101] Network is unreachable\nand more")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # retries for 20 s
    vae = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
    data = Data.model_validate({"name": "imagenet", "resolution": 256, "vae": vae})
    with pytest.raises(InputError) as error:
        autoencoders.find(data, Shared(tmp_path), "s.toml", download)
    line = str(error.value)
    assert line.startswith("data.vae.name stabilityai/sd-vae-ft-mse: not here")
    assert len(asked) == download
    assert ("Network is unreachable" in line) is download
    files = "config.json diffusion_pytorch_model.safetensors"
    assert f"hf download stabilityai/sd-vae-ft-mse {files} --local-dir" in line
    assert str(tmp_path / "_vae" / "stabilityai" / "sd-vae-ft-mse") in line
    assert "\n" not in line


class Perfect(Autoencoder):
    """Its latents are the images."""

    def __init__(self) -> None:
        pass

    def moments(self, images: Any) -> Any:
        x = images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        return np.stack((x, np.ones_like(x)), axis=1)

    def decode(self, latents: torch.Tensor, scaling: float) -> torch.Tensor:
        return latents


def test_reconstruction_of_a_perfect_autoencoder(digits: LoadedData) -> None:
    measured = reconstruction(Perfect(), digits, extractions(), "cpu", Hooks())
    (distances,) = measured["distances"].values()
    assert distances["held-out"] == pytest.approx(0, abs=0.05)
    assert distances["train"] == pytest.approx(distances["floor"], abs=0.05)
    assert measured["mean_absolute_error"] <= 1  # to_uint8 rounds 127.5 x + 128 down


@pytest.mark.parametrize("count", [1, 5, 297])
def test_reconstructions_stand_below_their_originals(digits: LoadedData, tmp_path: Path, count: int) -> None:
    few = Images(digits.heldout.images[:count], digits.heldout.labels[:count])
    path = tmp_path / "reconstructions.png"
    save_reconstructions(path, Perfect(), LoadedData("digits", digits.train, few, digits.fingerprint), "cpu")
    shown = np.asarray(Image.open(path)).astype(int)
    pitch, rows = 4 * (8 + 1), 4 if count > 12 else 2  # four times as large, a line between
    assert shown.shape == (rows * pitch + 4, min(count, 12) * pitch + 4)
    lines = [shown[row * pitch + 4 : (row + 1) * pitch] for row in range(rows)]
    for original, rebuilt in zip(lines[::2], lines[1::2], strict=True):
        assert np.abs(original - rebuilt).max() <= 1
        assert np.ptp(original) > 100


def test_a_folder_is_held_by_one_process_and_let_go_by_a_dead_one(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.processes import exclusive\n"
        f"with exclusive(Path({str(tmp_path)!r}), 'other work'): print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"other work, process {other.pid} on .*, is at work on it"),
            exclusive(tmp_path, "mine"),
        ):
            pass
    finally:
        other.kill()
        other.wait()
    with exclusive(tmp_path, "mine"):
        pass


def test_images_of_any_folder_can_be_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are decoded when asked for go through the encoder as arrays do."""
    from harness.data.images import scan
    from harness.data.trees import find_tree

    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    shared = Shared(tmp_path / "results")
    data = pretrained("v", shared.vae_folder("v"))
    fingerprint = scan(find_tree(tmp_path / "images")).fingerprint
    data = data.model_copy(update={"fingerprint": fingerprint})
    folder = autoencoders.find(data, shared, "s.toml")
    autoencoder, dataset = Autoencoder.load(folder, "cpu"), load(data, Source(tmp_path / "images"))
    weights = autoencoders.weights_hash(folder)
    monkeypatch.setattr("harness.data.shards.SHARD", 8)
    shards = Shards(data, dataset, shared, weights=weights, conditions={}, sweep="s.toml")
    encode_shards(shards, autoencoder.moments, Ranks(), Hooks())
    check_ready(data, shared, "s.toml")
    latents = open_latents(data, shared)
    expected = autoencoder.moments(dataset.train.images[np.array([5])])
    assert latents.train.moments(np.array([5]), np.array([False]))[0] == pytest.approx(expected[:, 0], abs=1e-5)
