"""Samplers against the posterior written out, diffusers, and data whose ideal denoiser is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from harness.data.pixels import to_uint8
from harness.diffusion.ddpm import DdpmHybrid
from harness.diffusion.guidance import Denoise, guided
from harness.diffusion.schedule import Schedule
from harness.errors import InputError
from harness.model.dit import DiT
from harness.spec.data import InputShape
from harness.spec.diffusion import Diffusion
from harness.spec.model import DiTSpec

PAPER = Schedule.of(Diffusion())


def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    sampler: str,
    step_noise: Callable[[int], Tensor],
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """All steps of a schedule."""
    objective = DdpmHybrid(Diffusion())
    objective.schedule = schedule
    return objective.sample(sampler, denoise, noise, len(schedule), step_noise, progress)


def no_noise(step: int) -> Tensor:
    raise AssertionError("no noise is needed here")


def seeded(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Recorder:
    """A denoiser with a bounded, smooth output that keeps what it saw."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, int, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert (t == t[0]).all()
        assert t.shape == (len(x),)
        out = torch.cat((torch.tanh(x + t[0] / 1000), torch.sin(3 * x)), dim=1)
        self.calls.append((x, int(t[0]), out))
        return out


def test_every_ddpm_step_is_that_of_diffusers() -> None:
    scheduler: Any = DDPMScheduler(
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=2e-2,
    )
    scheduler.set_timesteps(250)
    shape = (2, 3, 4, 4)
    denoise = Recorder()
    x0 = sample(denoise, seeded(shape, 0), PAPER.respaced(250), "ddpm", lambda step: seeded(shape, step))
    assert [t for _, t, _ in denoise.calls] == scheduler.timesteps.tolist()
    results = [x for x, _, _ in denoise.calls[1:]] + [x0]
    for step, ((x, t, out), result) in enumerate(zip(denoise.calls, results, strict=True)):
        generator = torch.Generator().manual_seed(step)
        expected = scheduler.step(out, t, x, generator=generator).prev_sample
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_ddpm_steps_follow_the_posterior() -> None:
    schedule = Schedule.of(Diffusion(timesteps=40)).respaced(5)
    shape = (2, 1, 3, 3)
    denoise = Recorder()
    x0 = sample(denoise, seeded(shape, 0), schedule, "ddpm", lambda step: seeded(shape, 10 + step))
    results = [x.double() for x, _, _ in denoise.calls[1:]] + [x0.double()]
    levels = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 40, dtype=torch.float64), 0)
    for step, ((x, t, out), result) in enumerate(zip(denoise.calls, results, strict=True)):
        predicted, v = out.double().chunk(2, dim=1)
        level = levels[t]
        last = step == 4
        before = torch.tensor(1.0).double() if last else levels[denoise.calls[step + 1][1]]
        beta = 1 - level / before
        # Ho et al. 2020, equation 11: the mean straight from the noise
        expected = (x.double() - beta / (1 - level).sqrt() * predicted) / (1 - beta).sqrt()
        if not last:
            low = (beta * (1 - before) / (1 - level)).log()
            log_variance = (1 + v) / 2 * beta.log() + (1 - v) / 2 * low
            expected = expected + (log_variance / 2).exp() * seeded(shape, 10 + step).double()
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)


def test_ddpm_asks_for_noise_in_every_step_but_the_last() -> None:
    asked: list[int] = []
    done: list[int] = []

    def step_noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1, 2, 2)

    sample(Recorder(), torch.zeros(1, 1, 2, 2), PAPER.respaced(4), "ddpm", step_noise, done.append)
    assert asked == [0, 1, 2]
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_single_step_is_the_predicted_image(sampler: str) -> None:
    x, denoise = seeded((2, 1, 3, 3), 0), Recorder()
    out = sample(denoise, x, PAPER.respaced(1), sampler, no_noise)
    ((_, t, predicted),) = denoise.calls
    assert t == 999
    level = float(PAPER.alphas_bar[-1])
    torch.testing.assert_close(out, (x - math.sqrt(1 - level) * predicted[:, :1]) / math.sqrt(level))


def test_ddim_is_deterministic_and_follows_its_formula() -> None:
    schedule, x = PAPER.respaced(6), seeded((2, 1, 3, 3), 0)
    first = Recorder()
    out = sample(first, x, schedule, "ddim", no_noise)
    assert torch.equal(out, sample(Recorder(), x, schedule, "ddim", no_noise))
    results = [call[0] for call in first.calls[1:]] + [out]
    kept = first.calls
    for step, ((xt, t, predicted), result) in enumerate(zip(kept, results, strict=True)):
        level = float(PAPER.alphas_bar[t])
        before = float(PAPER.alphas_bar[kept[step + 1][1]]) if step < 5 else 1.0
        x0 = (xt - math.sqrt(1 - level) * predicted[:, :1]) / math.sqrt(level)
        expected = math.sqrt(before) * x0 + math.sqrt(1 - before) * predicted[:, :1]
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_clipping_is_nothing_within_the_range_and_holds_what_leaves_it() -> None:
    schedule, x = PAPER.respaced(6), seeded((2, 1, 3, 3), 0)
    exact = gaussian_denoiser(schedule, 0.0, 0.1)  # every x_0 is far inside
    inside, same = (sample(exact, x, schedule, name, no_noise) for name in ("ddim-clip", "ddim"))
    torch.testing.assert_close(inside, same, rtol=1e-4, atol=1e-5)
    first = Recorder()
    out = sample(first, x, schedule, "ddim-clip", no_noise)
    results = [call[0] for call in first.calls[1:]] + [out]
    assert out.abs().max() == 1  # the last step is x_0 itself
    for step, ((xt, t, predicted), result) in enumerate(zip(first.calls, results, strict=True)):
        level = float(PAPER.alphas_bar[t])
        before = float(PAPER.alphas_bar[first.calls[step + 1][1]]) if step < 5 else 1.0
        x0 = ((xt - math.sqrt(1 - level) * predicted[:, :1]) / math.sqrt(level)).clamp(-1, 1)
        noise = (xt - math.sqrt(level) * x0) / math.sqrt(1 - level)
        torch.testing.assert_close(result, math.sqrt(before) * x0 + math.sqrt(1 - before) * noise, rtol=1e-4, atol=1e-5)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="must be ddpm or ddim or ddim-clip"):
        sample(Recorder(), torch.zeros(1, 1, 2, 2), PAPER, "euler", no_noise)


def gaussian_denoiser(schedule: Schedule, mean: float, deviation: float) -> Denoise:
    """The ideal output for data ~ N(mean, deviation^2): the expected noise, and the true variance of the step back."""
    steps = {int(t): i for i, t in enumerate(schedule.timesteps)}

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        i = steps[int(t[0])]
        level = float(schedule.alphas_bar[i])
        marginal = level * deviation**2 + 1 - level
        noise = math.sqrt(1 - level) * (x - math.sqrt(level) * mean) / marginal
        uncertainty = deviation**2 * (1 - level) / marginal  # of x_0 given x_t
        variance = float(schedule.posterior_variance[i]) + float(schedule.posterior_mean_x0[i]) ** 2 * uncertainty
        low, high = float(schedule.log_variance_low[i]), float(schedule.log_variance_high[i])
        v = 2 * (math.log(variance) - low) / (high - low) - 1
        return torch.cat((noise, torch.full_like(x, v)), dim=1)

    return denoise


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.3), (-2.0, 1.5)])
@pytest.mark.parametrize("steps", [7, 50])
def test_ddpm_recovers_a_gaussian_in_any_number_of_steps(steps: int, mean: float, deviation: float) -> None:
    """With the true variance the step back is exact for a Gaussian, so even few steps leave no bias."""
    schedule = PAPER.respaced(steps)
    shape = (40_000, 1, 1, 1)
    denoise = gaussian_denoiser(schedule, mean, deviation)
    x0 = sample(denoise, seeded(shape, 1000), schedule, "ddpm", lambda step: seeded(shape, step))
    assert x0.mean().item() == pytest.approx(mean, abs=4 * deviation / 200 + 0.007 * abs(mean))
    assert x0.std().item() == pytest.approx(deviation, rel=0.02)


def test_ddim_recovers_a_gaussian_in_many_steps() -> None:
    shape = (40_000, 1, 1, 1)
    x0 = sample(gaussian_denoiser(PAPER, 0.5, 0.3), seeded(shape, 0), PAPER, "ddim", no_noise)
    assert x0.mean().item() == pytest.approx(0.5, abs=0.01)
    assert x0.std().item() == pytest.approx(0.3, rel=0.03)


# Guidance


def random_dit(classes: int, channels: int = 4) -> DiT:
    dit = DiT(DiTSpec(depth=1, width=16, heads=2, patch_size=2), InputShape(channels, 4, classes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return dit


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("scale", [0.0, 1.5, 4.0])
def test_guidance_mixes_noise_and_keeps_the_conditional_variance(scale: float, channels: int | None) -> None:
    dit = random_dit(classes=5)
    x, t, y = seeded((3, 4, 4, 4), 1), torch.full((3,), 100), torch.tensor([0, 2, 4])
    out = guided(dit, y, scale, channels)(x, t)
    conditional, null = dit(x, t, y), dit(x, t, torch.full((3,), 5))
    lead = channels or 4
    expected = conditional.clone()
    expected[:, :lead] = (1 - scale) * null[:, :lead] + scale * conditional[:, :lead]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert (null - conditional).abs().max() > 0.01


@pytest.mark.parametrize(("scale", "passes"), [(1.0, 1), (1.0001, 2)])
def test_no_guidance_costs_a_single_pass(scale: float, passes: int) -> None:
    dit = random_dit(classes=5)
    batches: list[int] = []
    dit.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    x, t, y = seeded((3, 4, 4, 4), 1), torch.full((3,), 100), torch.tensor([0, 2, 4])
    guided(dit, y, scale)(x, t)
    assert batches == [3 * passes]


def test_a_model_without_classes() -> None:
    dit = random_dit(classes=0)
    x, t = seeded((3, 4, 4, 4), 1), torch.full((3,), 100)
    assert torch.equal(guided(dit, None, 1.0)(x, t), dit(x, t, None))
    with pytest.raises(ValueError, match=r"guidance 1\.5: a model without classes"):
        guided(dit, None, 1.5)
    with pytest.raises(ValueError, match="a model without classes"):
        guided(dit, torch.zeros(3, dtype=torch.int64), 1.5)


@pytest.mark.parametrize("channels", [0, 5])
def test_guided_channels_must_exist(channels: int) -> None:
    with pytest.raises(InputError, match=r"must be in 1\.\.4"):
        guided(random_dit(classes=5), torch.zeros(1, dtype=torch.int64), 1.5, channels)


def test_sampling_a_model_end_to_end_keeps_no_graph() -> None:
    denoise = guided(random_dit(classes=5), torch.tensor([1, 5]), 2.0)
    shape = (2, 4, 4, 4)
    x0 = sample(denoise, seeded(shape, 0), PAPER.respaced(3), "ddpm", lambda step: seeded(shape, step))
    assert x0.shape == shape
    assert not x0.requires_grad


def test_bytes_are_truncated_and_clamped() -> None:
    x = torch.tensor([-9.0, -1.004, -1.0, -0.997, 0.0, 0.5, 0.9999, 1.0, 9.0])
    assert to_uint8(x).tolist() == [0, 0, 0, 0, 128, 191, 255, 255, 255]
    assert to_uint8(x).dtype == torch.uint8
    levels = torch.arange(256)
    assert to_uint8((levels / 127.5 - 1).view(1, 1, 16, 16)).flatten().tolist() == levels.tolist()
