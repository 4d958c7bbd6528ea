"""Flow matching on Gaussian mixtures, whose velocity, transport and loss have closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.data.draws import stream
from harness.diffusion.flow import Flow
from harness.diffusion.guidance import guided
from harness.diffusion.objective import build
from harness.evaluation.memorisation import OptimalDenoiser
from harness.spec.data import InputShape
from harness.spec.diffusion import LOSS_BINS
from harness.spec.diffusion import Flow as FlowSpec

FLOW = Flow(FlowSpec(objective="flow"))
WEIGHTS, MEANS, DEVIATIONS = torch.tensor([[0.3, 0.7], [-1.0, 0.8], [0.2, 0.4]], dtype=torch.float64)


def at_time(s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every component at times s (N,), (N, 2) each."""
    s = s[:, None]
    return s * MEANS, s**2 * DEVIATIONS**2 + (1 - s) ** 2


def velocity(x: Tensor, s: Tensor) -> Tensor:
    """E[x_0 - noise | x_s = x] of the mixture, float64; x and s are (N,)."""
    mean, variance = at_time(s)
    apart = x[:, None] - mean
    logits = WEIGHTS.log() - variance.log() / 2 - apart**2 / (2 * variance)
    slope = (s[:, None] * DEVIATIONS**2 - (1 - s[:, None])) / variance
    out: Tensor = (logits.softmax(1) * (MEANS + slope * apart)).sum(1)
    return out


def density(x: Tensor, s: Tensor) -> Tensor:
    """Of x_s, (N,)."""
    mean, variance = at_time(s)
    normal = torch.exp(-((x[:, None] - mean) ** 2) / (2 * variance)) / (2 * math.pi * variance).sqrt()
    out: Tensor = (WEIGHTS * normal).sum(1)
    return out


def below(x: Tensor) -> Tensor:
    """The share of the mixture below x, (N,)."""
    out: Tensor = (WEIGHTS * torch.special.ndtr((x.double()[:, None] - MEANS) / DEVIATIONS)).sum(1)
    return out


def exact(x: Tensor, t: Tensor) -> Tensor:
    """The mixture's velocity as a network of 2C channels gives it; the second half must not matter."""
    v = velocity(x.double().flatten(), t.double()).view_as(x)
    return torch.cat((v, torch.full_like(v, 1e9)), dim=1)


def no_noise(step: int) -> Tensor:
    raise AssertionError("an ODE has no noise")


def samples(sampler: str, steps: int, noise: Tensor, denoise: Callable[[Tensor, Tensor], Tensor] = exact) -> Tensor:
    """(N,) from noise (N,)."""
    return FLOW.sample(sampler, denoise, noise.float().view(-1, 1, 1, 1), steps, no_noise).flatten()


def order(errors: list[float]) -> float:
    """Mean order over halved steps."""
    return float(np.mean(np.log2(np.array(errors[:-1]) / errors[1:])))


@pytest.mark.parametrize(("sampler", "expected"), [("euler", 1.0), ("heun", 2.0)])
def test_an_ode_sampler_transports_noise_with_its_order(sampler: str, expected: float) -> None:
    noise = torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    quantiles = torch.special.ndtr(noise)  # in one dimension the flow keeps them
    errors = [float((below(samples(sampler, n, noise)) - quantiles).abs().mean()) for n in (32, 64, 128)]
    assert order(errors) == pytest.approx(expected, abs=0.15)
    assert errors[-1] < 2e-3


def moments(steps: int, mean: float, deviation: float) -> tuple[float, float]:
    """Exact mean and variance of what `sde` draws of one Gaussian: its samples are linear in every noise."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        s = t.double().view(-1, 1, 1, 1)
        v = mean + (s * deviation**2 - (1 - s)) / (s**2 * deviation**2 + (1 - s) ** 2) * (x - s * mean)
        return torch.cat((v, v), dim=1)

    drawn = torch.eye(steps + 1)[1:].view(steps, -1, 1, 1, 1)  # the first row has no noise, each other row one
    out = FLOW.sample("sde", denoise, drawn[0], steps, lambda step: drawn[1 + step]).double().flatten()
    return float(out[0]), float((out[1:] - out[0]).square().sum())


def test_the_sde_has_weak_order_one() -> None:
    found = [moments(n, 0.7, 2.0) for n in (250, 500, 1000)]  # so wide that the last step is the smaller error
    assert [mean for mean, _ in found] == pytest.approx([0.7] * 3, abs=1e-4)  # its path is straight: no error
    assert order([abs(variance - 4) for _, variance in found]) == pytest.approx(1.0, abs=0.15)
    assert found[0][1] == pytest.approx(4, rel=0.01)


def test_the_sde_draws_the_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    count, steps = 10_000, 250

    def step_noise(step: int) -> Tensor:
        assert 0 <= step < steps - 1  # none in the last step
        return torch.randn(count, 1, 1, 1, generator=generator)

    drawn = FLOW.sample("sde", exact, step_noise(0), steps, step_noise).flatten()
    for x in (-1.0, 0.0, 0.5, 1.0):
        share = float(below(torch.tensor([x])))
        error = math.sqrt(share * (1 - share) / count)
        assert float((drawn < x).double().mean()) == pytest.approx(share, abs=4 * error + 0.005)


def test_the_steps_of_the_sde_are_the_published_ones() -> None:
    seen: list[float] = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t[0]))
        return torch.zeros(1, 2, 1, 1)

    zero = torch.zeros(1, 1, 1, 1)
    FLOW.sample("sde", denoise, zero, 250, lambda step: zero)
    assert seen == pytest.approx(np.linspace(0, 0.96, 250).tolist(), abs=1e-6)


@pytest.mark.parametrize(("sampler", "passes"), [("euler", 1), ("heun", 2), ("sde", 1)])
def test_forward_passes_are_what_the_spec_counts(sampler: str, passes: int) -> None:
    calls: list[int] = []
    zero = torch.zeros(1, 1, 1, 1)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.cat((x, x), dim=1)

    FLOW.sample(sampler, denoise, zero, 7, lambda step: zero)
    assert len(calls) == FLOW.spec.sampling_passes(sampler, 7) == 7 * passes


def mixture(generator: np.random.Generator, count: int) -> Tensor:
    """Draws (count, 1, 1, 1)."""
    part = (generator.uniform(size=count) > float(WEIGHTS[0])).astype(int)
    values = MEANS.numpy()[part] + DEVIATIONS.numpy()[part] * generator.standard_normal(count)
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)


def bin_losses(denoise: Callable[[Tensor, Tensor], Tensor], count: int = 100_000) -> list[float]:
    """Error per bin of time, as training measures it, from clean to noise."""
    found = []
    for b in range(LOSS_BINS):
        generator = stream("test-flow", b)
        x0 = mixture(generator, count)
        t = torch.from_numpy(FLOW.draw(generator, count, b / LOSS_BINS, (b + 1) / LOSS_BINS))
        noise = torch.from_numpy(generator.standard_normal((count, 1, 1, 1), dtype=np.float32))
        found.append(float(FLOW.error(denoise(FLOW.noised(x0, t, noise), t), x0, noise).mean()))
    return found


def test_the_loss_of_the_exact_velocity_is_the_closed_form_in_every_bin() -> None:
    x, second = torch.linspace(-7, 7, 1401, dtype=torch.float64), float((WEIGHTS * (MEANS**2 + DEVIATIONS**2)).sum())
    expected = []
    for b in range(LOSS_BINS):  # E[(x_0 - noise)^2] - E[v^2], by the trapezoid rule in x and the midpoint rule in time
        times = 1 - (b + (torch.arange(20, dtype=torch.float64) + 0.5) / 20) / LOSS_BINS
        squares = [torch.trapezoid(velocity(x, s.expand(len(x))) ** 2 * density(x, s.expand(len(x))), x) for s in times]
        expected.append(second + 1 - float(torch.stack(squares).mean()))
    assert bin_losses(exact) == pytest.approx(expected, rel=0.02)


def test_the_optimal_denoiser_predicts_the_velocity_of_its_images() -> None:
    """One image: x_s is straight between it and the noise, so the velocity leads to it."""
    image = torch.full((1, 1, 2, 2), 0.5)
    t, noise = torch.tensor([0.25, 0.9]), torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    xt = FLOW.noised(image, t, noise)
    found = OptimalDenoiser(image, None, FLOW)(xt, t, None)
    assert torch.allclose(found, (image - xt) / (1 - t)[:, None, None, None], atol=1e-5)
    assert torch.allclose(found, FLOW.target(image, noise), atol=1e-5)


@pytest.mark.parametrize("distribution", ["uniform", "logit-normal"])
def test_times_of_training_and_of_the_bins(distribution: Any) -> None:
    flow = build(FlowSpec(objective="flow", time_distribution=distribution))
    times: NDArray[np.float32] = flow.draw_training(stream("test-times", 0), 50_000)
    assert times.dtype == np.float32
    quantiles = np.quantile(times, [0.1, 0.5, 0.9])
    expected = [0.1, 0.5, 0.9] if distribution == "uniform" else [1 / (1 + math.exp(z)) for z in (1.2816, 0, -1.2816)]
    assert quantiles == pytest.approx(expected, abs=0.01)
    cleanest = flow.draw(stream("test-times", 1), 1000, 0.0, 1 / LOSS_BINS)  # uniform for every distribution
    assert 1 - 1 / LOSS_BINS <= cleanest.min() < cleanest.max() <= 1
    assert cleanest.mean() == pytest.approx(1 - 0.5 / LOSS_BINS, abs=0.005)


class Small(nn.Module):
    """A network of one hidden pair of layers; like a DiT it has classes to guide by."""

    shape = InputShape(1, 1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        label = torch.full_like(t, self.shape.classes) if y is None else y.float()
        out: Tensor = self.layers(torch.stack((x.flatten(), t, label), dim=1))
        return out.view(-1, 2, 1, 1)


def trained(steps: int = 600, batch: int = 512) -> Small:
    torch.manual_seed(0)
    network, generator = Small(), stream("test-small", 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x0 = mixture(generator, batch)
        t = torch.from_numpy(FLOW.draw_training(generator, batch))
        noise = torch.from_numpy(generator.standard_normal((batch, 1, 1, 1), dtype=np.float32))
        xt = FLOW.noised(x0, t, noise)
        optimizer.zero_grad()
        FLOW.loss(network(xt, t), x0, xt, t, noise).mean().backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def test_a_small_trained_network_comes_near_the_truth_down_to_its_own_floor() -> None:
    network, noise = trained(), torch.linspace(-2.5, 2.5, 201, dtype=torch.float64)
    quantiles = torch.special.ndtr(noise)

    def errors(denoise: Callable[[Tensor, Tensor], Tensor]) -> Iterator[float]:
        for steps in (2, 16, 64):
            yield float((below(samples("heun", steps, noise, denoise)) - quantiles).abs().mean())

    few, enough, many = errors(network)
    *_, without_error = errors(exact)
    assert few > 2 * enough  # as long as the sampler's error is the larger one
    assert many == pytest.approx(enough, rel=0.2)  # then more steps buy nothing: the floor, of the network
    assert 5 * without_error < many < 0.02
    assert bin_losses(network, 20_000) == pytest.approx(bin_losses(exact, 20_000), rel=0.15)


def test_guidance_mixes_the_velocities() -> None:
    torch.manual_seed(1)
    network = Small().requires_grad_(False)
    x, t, y = torch.randn(5, 1, 1, 1), torch.full((5,), 0.5), torch.tensor([0, 1, 0, 1, 0])
    own, null = network(x, t, y)[:, :1], network(x, t, torch.full_like(y, 2))[:, :1]
    assert torch.allclose(guided(network, y, 1.5)(x, t)[:, :1], null + 1.5 * (own - null), atol=1e-6)
    noise = torch.randn(5, generator=torch.Generator().manual_seed(2))
    plain, strong = (samples("euler", 3, noise, guided(network, y, scale)) for scale in (1.0, 4.0))
    assert not torch.allclose(plain, strong)
