"""Protocols: what a name stands for, and what stands beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.words import evaluation_lines
from harness.errors import InputError
from harness.spec.evaluation import Evaluation
from sweeps.grid import Sweep, load_sweep, warnings
from sweeps.protocols import protocols

GRID = """
[grid]
depth = [1, 2]
[model]
width = 16
patch_size = 4
[training]
steps = 1000
"""
IMAGENET = GRID + '[data]\nname = "imagenet"\nresolution = 256\n'
VAE = '[data.vae]\nkind = "pretrained"\nname = "{}"\n'


def load(folder: Path, text: str, head: str = GRID) -> Sweep:
    path = folder / "study.toml"
    path.write_text(head + text)
    return load_sweep(path)


def test_the_papers_protocol(tmp_path: Path) -> None:
    found = load(tmp_path, '[[evaluation]]\nprotocol = "paper"\nat = [500]', IMAGENET).evaluations
    paper = Evaluation(
        samples=50_000, sampler="ddpm", sampling_steps=250, guidance=1.0, ema=True, labels="uniform",
        extractor="inception-v3-compat", reference="adm", at=(500,),
    )  # fmt: skip
    assert found == (paper,)
    guided = load(tmp_path, '[[evaluation]]\nprotocol = "paper-guided"', IMAGENET).evaluations
    assert guided == (paper.model_copy(update={"guidance": 1.5, "at": ()}),)


def test_a_name_enters_no_id(tmp_path: Path) -> None:
    named = load(tmp_path, '[[evaluation]]\nprotocol = "small"').evaluations
    written = load(tmp_path, '[[evaluation]]\nsamples = 1500\nsampler = "ddim"\nsampling_steps = 25').evaluations
    own = '[protocol.mine]\nsamples = 1500\nsampler = "ddim"\nsampling_steps = 25\n[[evaluation]]\nprotocol = "mine"'
    assert named[0].id == written[0].id == load(tmp_path, own).evaluations[0].id


def test_fields_beside_a_name_override_and_lists_multiply(tmp_path: Path) -> None:
    text = '[[evaluation]]\nprotocol = "small"\nsampling_steps = [16, 32]\nseed = [0, 1, 2]\nat = [10, 20]'
    sweep = load(tmp_path, text)
    asked = [(e.samples, e.sampling_steps, e.seed, e.at) for e in sweep.evaluations]
    assert asked == [(1500, steps, seed, (10, 20)) for steps in (16, 32) for seed in (0, 1, 2)]
    assert len({e.id for e in sweep.evaluations}) == 6
    assert {origin.key for origin in sweep.origins} == {"evaluation 1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[evaluation]]\nprotocol = "papr"', "evaluation 1.protocol: unknown protocol 'papr'; allowed: paper,"),
        ("[[evaluation]]\nprotocol = 3", "evaluation 1.protocol: unknown protocol 3; allowed: paper,"),
        ("[protocol.paper]\nsamples = 5", "protocol.paper: this name is taken by a built-in protocol"),
        ("[protocol]\nmine = 5", "protocol.mine: should be a table"),
        (
            "[protocol.mine]\nsampels = 5",
            "protocol.mine.sampels: unknown key (did you mean samples?); allowed: samples,",
        ),
        ("[protocol.mine]\nsamples = 1", "protocol.mine.samples: should be greater than or equal to 2 (got 1)"),
        ('[protocol.mine]\ndata = "digits"', "protocol.mine.data: should be a list"),
        ("[protocol.mine]\nvae = 1", "protocol.mine.vae: should be the name"),
        ("[[evaluation]]\nseed = []", "evaluation 1.seed: is an empty list"),
        ("[[evaluation]]\nseed = [1, 1]", "evaluation 1.seed: a value stands twice"),
        ('[[evaluation]]\nseed = [0, "a"]', "evaluation 1.seed: should be a whole number"),
        ("[[evaluation]]\nseed = [0, 1]\n[[evaluation]]\nseed = 1", "evaluation 2: stands twice"),
        ("[[evaluation]]\nsampling_steps = [16, 2000]", "evaluation 1.sampling_steps: 2000 exceeds"),
        ('[[evaluation]]\nlabels = "even"', "evaluation 1.labels: should be 'uniform', 'balanced' or 'training'"),
        ('[data]\nlabels = false\n[[evaluation]]\nlabels = "balanced"', "evaluation 1.labels: balanced needs labels"),
        ('[[evaluation]]\nprotocol = "paper"', "evaluation 1.extractor: inception-v3-compat does not read digits"),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert message in str(caught.value)
    assert str(tmp_path / "study.toml") in str(caught.value)


def test_latents_have_no_range_to_clip_to(tmp_path: Path) -> None:
    clip = '[[evaluation]]\nsampler = "ddim-clip"\nextractor = "inception-v3-compat"\n'
    assert load(tmp_path, clip, IMAGENET).evaluations[0].sampler == "ddim-clip"
    message = "evaluation 1.sampler: ddim-clip clips to the range of pixels, and latents have none; allowed: ddpm, ddim"
    with pytest.raises(InputError, match=message):
        load(tmp_path, VAE.format("sd-vae-ft-ema") + clip, IMAGENET)


def test_what_a_protocol_is_not_meant_for_is_warned_about(tmp_path: Path) -> None:
    paper = '[[evaluation]]\nprotocol = "paper"\n'
    for vae, told in (("stabilityai/sd-vae-ft-mse", False), ("models/sd-vae-ft-mse", False), ("sd-vae-ft-ema", True)):
        lines = warnings(load(tmp_path, VAE.format(vae) + paper, IMAGENET))
        assert any("decodes with stabilityai/sd-vae-ft-mse" in line for line in lines) is told, vae
    assert "the sweep's autoencoder is none" in " ".join(warnings(load(tmp_path, paper, IMAGENET)))
    small = '[[evaluation]]\nprotocol = "small"\nsamples = 10_240\n'
    assert warnings(load(tmp_path, small)) == []
    assert warnings(load(tmp_path, small, IMAGENET)) == [
        "evaluation 1: protocol small is meant for digits, fashion-mnist, not for imagenet"
    ]


def test_the_built_in_ones_say_what_they_are_meant_for() -> None:
    known = protocols({})
    assert list(known) == ["paper", "paper-guided", "sit", "fast", "small"]
    assert {name: protocol.data for name, protocol in known.items() if protocol.data} == {
        "paper": ("imagenet",), "paper-guided": ("imagenet",), "sit": ("imagenet",),
        "small": ("digits", "fashion-mnist"),
    }  # fmt: skip


def test_the_plan_tells_what_names_stand_for(tmp_path: Path) -> None:
    text = (
        '[[evaluation]]\nprotocol = "small"\nseed = [0, 1]\nat = [500]\n[[evaluation]]\nguidance = 1.5\nsamples = 800'
    )
    assert evaluation_lines(load(tmp_path, text)) == [
        "evaluation 1 (protocol small): 1,500 samples, DDIM 25 steps, no guidance, classes drawn evenly, averaged "
        "weights, features of digits-cnn, reference train, sampling seeds 0, 1; after 500 steps and at the end",
        "evaluation 2: 800 samples, DDPM 250 steps, guidance 1.5, classes drawn evenly, averaged weights, features of "
        "digits-cnn, reference train, sampling seed 0; at the end",
    ]
