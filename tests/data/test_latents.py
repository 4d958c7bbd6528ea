"""Latents: what is written, how it is resumed, how it is sampled, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from harness.data import autoencoders, latents, verified
from harness.data.batches import LatentBatches, batches
from harness.data.dataset import Images, LoadedData
from harness.data.draws import posterior_noise
from harness.data.latents import check_ready, open_latents
from harness.data.shards import Shards
from harness.data.verified import checksum_of
from harness.errors import InputError, NonFiniteError
from harness.files import write_json
from harness.launch.encoding import encode_shards
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.training.hooks import Hooks
from harness.training.ranks import Ranks

DATA = Data.model_validate({"name": "digits", "vae": {"kind": "trained", "factor": 4, "channels": 2}})
CONDITIONS: dict[str, Any] = {"threads": 1}
WEIGHTS = b"not really weights"


def dataset(train: int = 70, heldout: int = 10) -> LoadedData:
    rng = np.random.default_rng(0)

    def split(n: int) -> Images:
        return Images(rng.integers(0, 256, (n, 8, 8, 1), np.uint8), rng.integers(0, 10, n))

    return LoadedData("digits", split(train), split(heldout), "634488df5c7b")


def moments(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stands in for an autoencoder: the corners of every quarter as mean, something positive as deviation."""
    x = images[..., 0].astype(np.float32) / 255
    mean = np.stack((x[:, ::4, ::4], x[:, 1::4, 2::4]), axis=1)  # (n, 2, 2, 2)
    return np.stack((mean, 0.1 + mean / 2), axis=1)


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    """A results folder with a trained autoencoder, as far as the bookkeeping is concerned."""
    shared = Shared(tmp_path / "results")
    put_vae(shared, WEIGHTS)
    return shared


def put_vae(shared: Shared, content: bytes, data: Data = DATA) -> str:
    folder = shared.vae_folder(data.encoding_name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / autoencoders.WEIGHTS).write_bytes(content)
    weights = hashlib.sha256(content).hexdigest()[:12]
    write_json(folder / autoencoders.CONFIG, {"in_channels": 1, "latent_channels": 2, "block_out_channels": [4, 8, 16]})
    card = {"id": data.encoding_id, "weights": weights, "reconstruction": {}}
    write_json(folder / autoencoders.CARD, card)
    return weights


def go(shared: Shared, encoder: Any = moments, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "weights": hashlib.sha256(WEIGHTS).hexdigest()[:12], "conditions": CONDITIONS, "sweep": "s.toml",
        "dataset": dataset(), **options,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.data.shards.SHARD", 32)
        return encode_shards(Shards(DATA, given.pop("dataset"), shared, **given), encoder, Ranks(), Hooks())


def folder_of(shared: Shared) -> Path:
    return shared.latents_folder(DATA.encoding_name)


def content(shared: Shared) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder_of(shared).iterdir()) if not p.name.startswith(".")}


def test_every_image_and_its_mirror_image_are_encoded(shared: Shared) -> None:
    manifest = go(shared)
    check_ready(DATA, shared, "s.toml")
    opened, images = open_latents(DATA, shared), dataset()
    assert (len(opened.train), len(opened.heldout)) == (70, 10)
    assert [s["count"] for s in manifest["splits"]["train"]["shards"]] == [32, 32, 6]
    assert np.array_equal(opened.train.labels, images.train.labels)
    indices = np.array([69, 0, 33])
    expected = moments(images.train.images[indices])
    mirrored = moments(np.ascontiguousarray(images.train.images[indices][:, :, ::-1]))
    mean, std = opened.train.moments(indices, np.array([False, False, False]))
    assert np.array_equal(mean, expected[:, 0])
    assert np.array_equal(std, expected[:, 1])
    mean, std = opened.train.moments(indices, np.array([False, True, True]))
    assert np.array_equal(mean[1:], mirrored[1:, 0])
    assert np.array_equal(mean[0], expected[0, 0])
    assert np.array_equal(std[1:], mirrored[1:, 1])
    assert not np.array_equal(mirrored, expected)


def test_the_manifest_says_what_was_encoded_by_what(shared: Shared) -> None:
    go(shared)
    manifest = json.loads((folder_of(shared) / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["fingerprint"] == "634488df5c7b"
    assert manifest["weights"] == hashlib.sha256(WEIGHTS).hexdigest()[:12]
    assert manifest["data"]["vae"]["kind"] == "trained"
    assert manifest["splits"]["train"]["count"] == 70


def test_labels_flips_and_scaling_do_not_ask_for_another_encoding() -> None:
    other = DATA.model_copy(update={"labels": False, "horizontal_flips": True})
    assert other.encoding_name == DATA.encoding_name
    names = {
        Data.model_validate({"name": "digits", "vae": {"kind": "pretrained", **vae}}).encoding_name
        for vae in ({"name": "a"}, {"name": "a", "scaling": "measured"}, {"name": "b"})
    }
    assert len(names) == 2


class Killed(BaseException):
    """As if the process had been killed."""


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 4, 6, 7])
def test_an_interrupted_encoding_ends_with_the_same_bytes(shared: Shared, tmp_path: Path, calls: int) -> None:
    """32 images a shard and 32 a batch: two calls a shard, so a kill after odd numbers is inside one."""
    go(shared)
    whole = content(shared)
    broken = Shared(tmp_path / "broken")
    seen = 0

    def dying(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal seen
        if seen == calls:
            raise Killed
        seen += 1
        return moments(images)

    with pytest.raises(Killed):
        go(broken, dying)
    manifest = json.loads(content(broken).get("manifest.json", b'{"splits": {}}'))
    assert sum(len(s["shards"]) for s in manifest["splits"].values()) == calls // 2
    again = 0

    def counting(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal again
        again += 1
        return moments(images)

    go(broken, counting)
    assert content(broken) == whole
    assert again == 8 - calls // 2 * 2  # whole shards are not made again


def test_a_half_encoded_set_starts_nothing(shared: Shared) -> None:
    def dying(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if (folder_of(shared) / "train-00000.npy").exists():
            raise Killed
        return moments(images)

    with pytest.raises(InputError, match=r"not encoded yet; first: dit-harness encode s.toml"):
        check_ready(DATA, shared, "s.toml")
    with pytest.raises(Killed):
        go(shared, dying)
    with pytest.raises(InputError, match="only 32 images are encoded; go on with: dit-harness encode"):
        check_ready(DATA, shared, "s.toml")
    with pytest.raises(InputError, match="no whole set of latents"):
        open_latents(DATA, shared)


def test_latents_are_sampled_and_scaled(shared: Shared) -> None:
    manifest = go(shared)
    opened = open_latents(DATA, shared)
    data = batches(opened, "cpu").train
    indices = np.arange(70)
    first = data.x0(indices, None, posterior_noise(1, 0)).numpy()
    again = data.x0(indices, None, posterior_noise(1, 0)).numpy()
    other = data.x0(indices, None, posterior_noise(1, 1)).numpy()
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    mean, std = opened.train.moments(indices, np.zeros(70, bool))
    noise = posterior_noise(1, 0).rows(slice(0, 70), mean.shape[1:])
    assert first == pytest.approx((mean + std * noise) * np.float32(manifest["measured_scaling"]), rel=1e-6)
    draws = np.stack([data.x0(indices, None, posterior_noise(2, s)).numpy() for s in range(400)])
    scaled = np.float32(opened.scaling)
    assert draws.mean(0) == pytest.approx(mean * scaled, abs=0.3)
    assert draws.std(0) == pytest.approx(std * scaled, rel=0.2)
    assert draws.std() == pytest.approx(1.0, abs=0.01)  # the scaling makes it so
    assert data.labels.tolist() == opened.train.labels.tolist()


def test_latents_that_are_kept_on_the_device_are_the_same(shared: Shared) -> None:
    go(shared)
    data = batches(open_latents(DATA, shared), "cpu").train
    assert isinstance(data, LatentBatches)
    indices, mirror = np.array([69, 0, 3, 3]), np.array([True, False, False, True])
    read = [data.x0(indices, way, posterior_noise(1, 0), slice(1, 4)) for way in (mirror, None)]
    assert not torch.equal(*read)
    assert data.bytes == 70 * 4 * read[0][0].nbytes
    data.keep()
    kept = [data.x0(indices, way, posterior_noise(1, 0), slice(1, 4)) for way in (mirror, None)]
    assert all(map(torch.equal, read, kept))


def test_a_fixed_scaling_is_taken_as_given() -> None:
    manifest = {"measured_scaling": 0.7}
    pretrained = Data.model_validate({"name": "digits", "vae": {"kind": "pretrained", "name": "x", "factor": 4}})
    assert latents.scaling(pretrained, manifest) == 0.18215
    assert pretrained.vae is not None
    measured = pretrained.model_copy(update={"vae": pretrained.vae.model_copy(update={"scaling": "measured"})})
    assert latents.scaling(measured, manifest) == 0.7
    assert latents.scaling(DATA, manifest) == 0.7


def test_a_damaged_shard_is_found_and_made_again(shared: Shared) -> None:
    weights = go(shared)["weights"]
    before = content(shared)
    assert latents.is_complete(DATA, shared, weights)
    shard = folder_of(shared) / "train-00001.npy"
    damaged = bytearray(shard.read_bytes())
    damaged[-5] ^= 1
    shard.write_bytes(damaged)
    assert not latents.is_complete(DATA, shared, weights)
    opened = open_latents(DATA, shared)
    opened.train.moments(np.array([0]), np.array([False]))  # another shard
    with pytest.raises(InputError, match=r"train-00001.npy: missing or damaged \(its checksum differs\)"):
        opened.train.moments(np.array([40]), np.array([False]))
    go(shared)
    assert content(shared) == before
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train-00001.npy: missing or cut off; make it again: dit-harness encode"):
        check_ready(DATA, shared, "s.toml")


def test_a_launch_reads_a_shard_once_until_it_changes(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    go(shared)
    read: list[str] = []

    def reading(path: Path) -> str:
        read.append(path.name)
        return checksum_of(path)

    monkeypatch.setattr(verified, "checksum_of", reading)
    shards = [f"train-{number:05d}.npy" for number in range(3)]
    everything, places = np.arange(70), np.zeros(70, bool)

    def train() -> list[str]:
        """Touch all training latents, as a job does; returns the shards that were read to check them."""
        read.clear()
        open_latents(DATA, shared).train.moments(everything, places)
        return [name for name in read if name in shards]

    assert train() == shards, "a job without a launch checks for itself"
    lines: list[str] = []
    latents.verify(DATA, shared, lines.append)
    assert train() == []
    read.clear()
    latents.verify(DATA, shared, lines.append)
    assert (read, lines) == ([], [])
    monkeypatch.setattr(verified, "_WORTH_A_LINE", 10)
    shard = folder_of(shared) / shards[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole)  # the same bytes at another time
    assert train() == shards[1:2]
    latents.verify(DATA, shared, lines.append)
    assert len(lines) == 1
    assert train() == []
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"train-00001.npy: missing or damaged \(its checksum differs\)"):
        train()
    with pytest.raises(InputError, match=r"train-00001.npy: missing or damaged \(its checksum differs\)"):
        latents.verify(DATA, shared, lines.append)
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00001.npy: missing or damaged"):
        latents.verify(DATA, shared, lines.append)


def test_latents_of_another_vae_are_refused(shared: Shared) -> None:
    go(shared)
    other = put_vae(shared, b"trained anew elsewhere")
    with pytest.raises(InputError, match=r"encoded by another VAE \(weights \w{12}, the sweep's are"):
        check_ready(DATA, shared, "s.toml")
    with pytest.raises(InputError, match="encoded by another VAE"):
        go(shared, weights=other)


@pytest.mark.parametrize("document", [{}, {"complete": True}, {"format": 1}, {"splits": {}, "complete": True}])
def test_a_manifest_that_is_none_starts_nothing(shared: Shared, document: dict[str, Any]) -> None:
    weights = go(shared)["weights"]
    whole = content(shared)
    write_json(folder_of(shared) / "manifest.json", document)
    assert not latents.is_complete(DATA, shared, weights)
    with pytest.raises(InputError, match="not encoded yet; first: dit-harness encode"):
        check_ready(DATA, shared, "s.toml")
    with pytest.raises(InputError, match="no whole set of latents"):
        open_latents(DATA, shared)
    go(shared)
    assert content(shared) == whole


@pytest.mark.parametrize("change", [{"id": "0" * 12}, {"id": None}, None], ids=str)
def test_the_card_of_another_autoencoder_is_none(shared: Shared, change: dict[str, Any] | None) -> None:
    go(shared)
    path = shared.vae_folder(DATA.encoding_name) / autoencoders.CARD
    write_json(path, {} if change is None else {**json.loads(path.read_text()), **change})
    with pytest.raises(InputError, match="not trained yet; first: dit-harness train-vae"):
        check_ready(DATA, shared, "s.toml")


def test_latents_of_other_data_are_refused(shared: Shared) -> None:
    go(shared)
    other = LoadedData("digits", dataset().train, dataset().heldout, "000000000000")
    with pytest.raises(InputError, match="encoded from other data"):
        go(shared, dataset=other)
    manifest = json.loads((folder_of(shared) / "manifest.json").read_text())
    write_json(folder_of(shared) / "manifest.json", {**manifest, "fingerprint": "0" * 12})
    with pytest.raises(InputError, match="encoded from other data"):
        check_ready(DATA, shared, "s.toml")


def test_values_that_are_not_finite_are_refused(shared: Shared) -> None:
    with pytest.raises(NonFiniteError, match=r"digits, train images: 32 of 32 latents .* not finite"):
        go(shared, lambda images: moments(images) * np.float32("nan"))

    def one_infinite(images: np.ndarray) -> np.ndarray:
        found = moments(images)
        found[3] = np.inf
        return found

    with pytest.raises(NonFiniteError, match=r"digits, train images: 1 of 32 latents .*; the first is number 3\)"):
        go(
            shared,
            lambda images: np.where(np.arange(len(images))[:, None, None, None, None] == 3, np.inf, moments(images)),
        )
    with pytest.raises(NonFiniteError, match=r"the latents have the variance 0\.0: no scaling"):
        go(shared, lambda images: np.zeros_like(moments(images)))
    assert not any(json.loads(file.read_text())["complete"] for file in folder_of(shared).glob("manifest.json"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 3}, "images' channels 1, but .* has 3"),
        ({"latent_channels": 4}, "vae.channels 2, but .* has 4"),
        ({"block_out_channels": [4, 8]}, "vae.factor 4, but .* has 2"),
        ({"shift_factor": 0.1}, "shifted latents"),
    ],
)
def test_a_vae_that_does_not_fit_is_one_line(shared: Shared, config: dict[str, Any], message: str) -> None:
    path = shared.vae_folder(DATA.encoding_name) / autoencoders.CONFIG
    write_json(path, {**json.loads(path.read_text()), **config})
    with pytest.raises(InputError, match=message):
        check_ready(DATA, shared, "s.toml")
