"""The folder of the autoencoder that a data set names, and whether it fits. Imports no torch.

An autoencoder is a folder as diffusers writes it: `config.json` and `diffusion_pytorch_model.safetensors`. One trained
here also has a `card.json`, written last. Its recipe or hub name and the hash of its weights identify it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import InputError, first_line
from harness.files import at_home, file_hash, read_json
from harness.runs.study import Shared
from harness.spec.data import Data, PretrainedVae, TrainedVae
from harness.spec.identity import ID_DIGITS

#: Longest wait for the hub's first answer, in seconds.
_HUB_SECONDS = 10.0

CONFIG, WEIGHTS, CARD = "config.json", "diffusion_pytorch_model.safetensors", "card.json"


def find(data: Data, shared: Shared, sweep: str, download: bool = False) -> Path:
    """The folder of the autoencoder that `data` names; its files are checked against the data.

    Args:
        data: names an autoencoder.
        shared: the folder of autoencoders trained here, and of pretrained ones that a user put there.
        sweep: the sweep, for the command that an error message names.
        download: ask the hub for a pretrained one that is not here.

    Raises:
        InputError: the autoencoder is not there (the message says how to get it), is damaged, or does not fit.
    """
    if isinstance(data.vae, TrainedVae):
        folder = shared.vae_folder(data.encoding_name)
        card = card_of(data, shared)
        if card is None:
            raise InputError(f"data.vae: not trained yet; first: dit-harness train-vae {sweep}")
        if not (folder / WEIGHTS).exists() or card["weights"] != weights_hash(folder):
            raise InputError(f"{folder}: damaged (weights other than its card's); remove it and train it again")
    else:
        assert isinstance(data.vae, PretrainedVae)
        folder = _find_pretrained(data.vae.name, shared, sweep, download)
    check_fits(folder, data)
    return folder


def card_of(data: Data, shared: Shared) -> dict[str, Any] | None:
    """The card of the autoencoder trained on `data`; None when there is none, or one of another autoencoder."""
    card = read_json(shared.vae_folder(data.encoding_name) / CARD, ("id", "weights", "reconstruction"))
    return card if card is not None and card["id"] == data.encoding_id else None


def _find_pretrained(name: str, shared: Shared, sweep: str, download: bool) -> Path:
    mine = shared.vae_folder(name)
    for folder in (mine, Path(at_home(name))):
        if folder.is_dir():
            for file in (CONFIG, WEIGHTS):
                if not (folder / file).is_file():
                    raise InputError(f"data.vae.name {name}: {folder} holds no {file} (diffusers' format, safetensors)")
            return folder
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    found = [_cached(name, file) for file in (CONFIG, WEIGHTS)]
    reason = f"to ask the hub for it: dit-harness encode {sweep}"
    if download and None in found:
        try:
            get_hf_file_metadata(hf_hub_url(name, CONFIG), timeout=_HUB_SECONDS)  # asks once; a download asks six times
            found = [Path(hf_hub_download(name, file)) for file in (CONFIG, WEIGHTS)]
        except Exception as error:  # the hub's errors have no common base; an unreachable network raises httpx's own
            reason = f"the hub gave none ({first_line(error)})"
    if found[0] is None or found[1] is None:
        raise InputError(
            f"data.vae.name {name}: not here; {reason}; or bring the folder {mine} from a machine with a network, made "
            f"there by: hf download {name} {CONFIG} {WEIGHTS} --local-dir {mine}"
        )
    return found[0].parent


def _cached(name: str, file: str) -> Path | None:
    """A file of the hub that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def weights_hash(folder: Path) -> str:
    """First 12 hex digits of sha256 over the weights file."""
    return file_hash(folder / WEIGHTS)[:ID_DIGITS]


def check_fits(folder: Path, data: Data) -> None:
    """Check an autoencoder's configuration against the images and the latents that `data` says.

    Raises:
        InputError: one line that names what does not fit.
    """
    assert data.vae is not None
    config = read_json(folder / CONFIG)
    if config is None or "latent_channels" not in config or not isinstance(config.get("block_out_channels", []), list):
        raise InputError(f"{folder / CONFIG}: no configuration of a diffusers AutoencoderKL")
    for what, value, wanted in (
        ("images' channels", config.get("in_channels", 3), data.image_shape.channels),
        ("vae.channels", config["latent_channels"], data.vae.channels),
        ("vae.factor", 2 ** (len(config.get("block_out_channels", (64,))) - 1), data.vae.factor),
    ):
        if value != wanted:
            raise InputError(f"data.vae: does not fit: {what} {wanted}, but {folder} has {value}")
    if config.get("shift_factor") is not None or config.get("latents_mean") is not None:
        raise InputError(f"{folder / CONFIG}: shifted latents (shift_factor, latents_mean) are not supported")


def describe(data: Data) -> dict[str, Any]:
    """The data and its autoencoder, as a manifest or a card records them."""
    return data.encoded.model_dump(mode="json", exclude_none=True)
