"""The hybrid loss against torch.distributions in float64, and who learns from what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from harness.diffusion.ddpm import DdpmHybrid, hybrid_loss
from harness.spec.diffusion import Diffusion

OBJECTIVE = DdpmHybrid(Diffusion())
SCHEDULE = OBJECTIVE.schedule


def batch(timesteps: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Grey values on the 256 levels, the outermost among them; a prediction that is somewhat right."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(timesteps), 2, 4, 4)
    x0 = torch.randint(0, 256, shape, generator=generator) / 127.5 - 1
    x0[:, 0, 0, 0], x0[:, 0, 0, 1] = -1, 1
    t = torch.tensor(timesteps)
    noise = torch.randn(shape, generator=generator)
    predicted = noise + 0.3 * torch.randn(shape, generator=generator)
    variance = torch.randn(shape, generator=generator)
    output = torch.cat((predicted, variance), dim=1).requires_grad_()
    return {"output": output, "x0": x0, "xt": SCHEDULE.q_sample(x0, t, noise), "t": t, "noise": noise}


def reference_vb(output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Bits per dimension from the definitions, one sample after another in float64 (noise is not used)."""
    out = []
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    alphas_bar = torch.cumprod(1 - betas, 0)
    for n, step in enumerate(t.tolist()):
        predicted, v = output[n].double().chunk(2)
        start, noised = x0[n].double(), xt[n].double()
        beta, alpha_bar = betas[step], alphas_bar[step]
        before = alphas_bar[step - 1] if step else torch.tensor(1.0, dtype=torch.float64)
        variance = beta * (1 - before) / (1 - alpha_bar)
        low = variance if step else betas[1] * (1 - alphas_bar[0]) / (1 - alphas_bar[1])
        deviation = torch.exp(0.5 * ((v + 1) / 2 * beta.log() + (1 - v) / 2 * low.log()))

        def posterior_mean(clean: Tensor) -> Tensor:
            weighted = before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * noised  # noqa: B023
            return weighted / (1 - alpha_bar)  # noqa: B023

        guess = (noised - (1 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
        model = Normal(posterior_mean(guess), deviation)
        if step:
            nats = kl_divergence(Normal(posterior_mean(start), variance.sqrt()), model)
        else:
            above = torch.where(start > 0.999, 1.0, model.cdf(start + 1 / 255))
            below = torch.where(start < -0.999, 0.0, model.cdf(start - 1 / 255))
            nats = -(above - below).clamp(min=1e-12).log()
        out.append(nats.mean() / math.log(2))
    return torch.stack(out)


@pytest.mark.parametrize("timesteps", [[1, 2, 10, 250, 998, 999], [0, 0, 0], [0, 3, 0, 999]])
def test_vb_is_the_bound(timesteps: list[int]) -> None:
    inputs = batch(timesteps)
    loss = hybrid_loss(**inputs, schedule=SCHEDULE)
    assert loss.mse.shape == loss.vb.shape == (len(timesteps),)
    torch.testing.assert_close(loss.vb.double(), reference_vb(**inputs), rtol=2e-4, atol=1e-7)


def test_gradient_of_vb_is_that_of_the_bound() -> None:
    inputs = batch([0, 1, 40, 999])
    (gradient,) = torch.autograd.grad(hybrid_loss(**inputs, schedule=SCHEDULE).vb.sum(), inputs["output"])
    (expected,) = torch.autograd.grad(reference_vb(**inputs).sum(), inputs["output"])
    torch.testing.assert_close(gradient[:, 2:], expected[:, 2:], rtol=2e-3, atol=1e-6)
    assert expected[:, :2].abs().max() > 1e-4  # the bound itself would move the noise; the loss detaches it
    assert (gradient[:, :2] == 0).all()


def test_mse_trains_the_noise_only() -> None:
    inputs = batch([0, 5, 999])
    loss = hybrid_loss(**inputs, schedule=SCHEDULE)
    predicted = inputs["output"][:, :2]
    torch.testing.assert_close(loss.mse, ((predicted - inputs["noise"]) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(loss.mse, OBJECTIVE.error(inputs["output"], inputs["x0"], inputs["noise"]))
    (gradient,) = torch.autograd.grad(loss.mse.sum(), inputs["output"])
    assert (gradient[:, 2:] == 0).all()
    assert (gradient[:, :2] != 0).all()
    torch.testing.assert_close(loss.total, loss.mse + loss.vb)


def test_a_perfect_prediction_costs_nothing() -> None:
    inputs = batch([1, 500, 999])
    inputs["output"] = torch.cat((inputs["noise"], -torch.ones_like(inputs["noise"])), dim=1)
    loss = hybrid_loss(**inputs, schedule=SCHEDULE)
    assert loss.total.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_decoder_sums_to_one_over_the_grey_values() -> None:
    """At t = 0 the 256 levels are all there is: their probabilities under any prediction add up to 1."""
    levels = torch.arange(256) / 127.5 - 1
    xt = torch.full((256, 1, 1, 1), 0.2)
    output = torch.tensor([0.7, 3.0]).view(1, 2, 1, 1).expand(256, -1, -1, -1)
    t = torch.zeros(256, dtype=torch.int64)
    vb = hybrid_loss(output, levels.view(-1, 1, 1, 1), xt, t, torch.zeros_like(xt), SCHEDULE).vb
    likely = vb < 39  # the others sit at the floor of 1e-12
    assert torch.exp2(-vb[likely]).sum().item() == pytest.approx(1, abs=1e-4)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    inputs = batch([0, 7, 999])
    together = hybrid_loss(**inputs, schedule=SCHEDULE)
    for n in range(3):
        alone = hybrid_loss(**{key: value[n : n + 1] for key, value in inputs.items()}, schedule=SCHEDULE)
        torch.testing.assert_close(alone.total[0], together.total[n])


def test_loss_of_bf16_output_is_float32() -> None:
    inputs = batch([0, 7, 999])
    inputs["output"] = inputs["output"].bfloat16()
    loss = hybrid_loss(**inputs, schedule=SCHEDULE)
    error = OBJECTIVE.error(inputs["output"], inputs["x0"], inputs["noise"])
    assert loss.mse.dtype == loss.vb.dtype == error.dtype == torch.float32
